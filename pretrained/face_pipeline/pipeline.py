"""A text-to-image pipeline for diffusers: DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, …)."""

import re

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

logger = logging.get_logger(__name__)


class FacePipeline(DiffusionPipeline):
    def __init__(self, unet, text_encoder, vae, scheduler, vocabulary="", wordings=None):
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, vae=vae, scheduler=scheduler)
        self.register_to_config(vocabulary=vocabulary, wordings=wordings or {})

    def words(self, prompt):
        prompt = prompt.lower()
        for phrase, words in self.config.wordings.items():
            prompt = re.sub(rf"\b{phrase}\b", words, prompt)
        return re.findall(r"[\w'-]+|,", prompt)

    def tokenize(self, prompts, length=48):
        vocabulary = self.config.vocabulary.split()
        tokens = torch.zeros(len(prompts), 1 + length, dtype=torch.long)
        tokens[:, 0] = len(vocabulary) + 1
        for row, prompt in zip(tokens, prompts):
            words = self.words(prompt)
            if unknown := [word for word in words if word not in vocabulary]:
                logger.warning(f"prompt: the model does not know these words: {', '.join(unknown)}")
            known = [word for word in words if word in vocabulary]
            if len(known) > length:
                raise ValueError(f"prompt: {len(known)} words and commas; {length} are the most")
            for place, word in enumerate(known, 1):
                row[place] = 1 + vocabulary.index(word)
        return tokens.to(self.device)

    @torch.no_grad()
    def __call__(self, prompt, negative_prompt="", num_inference_steps=20, guidance_scale=2.0,
                 num_images_per_prompt=1, generator=None, latents=None, output_type="pil"):  # fmt: skip
        count = num_images_per_prompt
        text = self.text_encoder(self.tokenize([prompt] * count + [negative_prompt] * count))
        if latents is None:
            latents = randn_tensor((count, 4, 16, 16), generator, self.device)
        sigmas = np.linspace(0.995, 0.001, num_inference_steps + 1)[:-1]
        self.scheduler.set_timesteps(sigmas=sigmas, device=self.device)
        latents = latents * (sigmas[0] ** 2 + (1 - sigmas[0]) ** 2) ** 0.5  # an image in it would have 0.5 %
        for timestep in self.progress_bar(self.scheduler.timesteps):
            sigma = (timestep / self.scheduler.config.num_train_timesteps).expand(2 * count)
            output = self.unet(torch.cat((latents, latents)), sigma, *text)
            conditioned, unconditional = output.chunk(2)
            velocity = unconditional + guidance_scale * (conditioned - unconditional)
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        images = self.vae.decode((0.5 + 0.1 * latents).clip(0, 1)).clip(0, 1).cpu()
        return images if output_type == "pt" else self.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
