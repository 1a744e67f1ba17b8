// Formulas, after the page has arrived.
document.addEventListener("DOMContentLoaded", () => {
  const delimiters = [["$$", true], ["$", false]].map(([mark, display]) => ({ left: mark, right: mark, display }));
  for (const text of document.querySelectorAll(".jp-RenderedMarkdown")) renderMathInElement(text, { delimiters });
});
