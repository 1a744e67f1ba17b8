"""Lesson 19: diffusers' schedulers drive our networks, its pipelines open them, and networks are changed a little."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion_course import attention, latents
from diffusion_course.attention import text_to_image, tokens
from diffusion_course.latents import TextToImage, TextToImageConfig, line_times
from diffusion_course.samplers import DPMSolver
from diffusion_course.wild import (
    CONTROL,
    LoRA,
    add_control,
    add_lora,
    add_word,
    control_loss,
    draw_for,
    draw_with,
    edges,
    merge_lora,
    roughen,
    save_learned,
    save_pipeline,
    scheduler_betas,
    set_control,
    tuning_loss,
)
from diffusion_utils import TOY_MODEL, Diffusion, generate, schedule

WORDS = ["red", "blue", "cap"]


@pytest.fixture(scope="module")
def toy():
    return Diffusion.from_pretrained(TOY_MODEL).requires_grad_(False)


def small_model(image_size=8):
    torch.manual_seed(0)
    model = TextToImage(TextToImageConfig(WORDS, widths=(8, 16), image_size=image_size))
    for weight in model.parameters():  # many are zero at first
        nn.init.normal_(weight, std=0.1)
    model.norm.running_mean.fill_(0.5)
    model.norm.running_var.fill_(0.01)
    return model.eval()


def output(model, prompt="red cap"):
    torch.manual_seed(1)
    noisy, time = torch.randn(3, 4, 8, 8), torch.rand(3, 1, 1, 1)
    return model.network(noisy, time, tokens(prompt, model.config.vocabulary))


def learning(model):
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


# diffusers ------------------------------------------------------------------------------


def test_betas_are_those_of_the_schedule():
    scheduler = DDIMScheduler(trained_betas=scheduler_betas(100))
    _, signal_rate = schedule(torch.arange(1, 101) / 100)
    torch.testing.assert_close(scheduler.alphas_cumprod, signal_rate**2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [4, 20])
def test_ddim_of_diffusers_draws_the_same_faces(toy, steps):
    scheduler = DDIMScheduler(trained_betas=scheduler_betas(), timestep_spacing="trailing", clip_sample=False)
    faces = draw_with(toy, scheduler, n=2, steps=steps, seed=0)
    torch.testing.assert_close(faces, generate(toy, 2, steps, seed=0), atol=2e-3, rtol=0)


def test_2m_of_diffusers_draws_the_same_faces(toy):
    """In many steps, since the two place them differently."""
    scheduler = DPMSolverMultistepScheduler(trained_betas=scheduler_betas(), timestep_spacing="trailing")
    faces = draw_with(toy, scheduler, n=2, steps=50, seed=0)
    assert (faces - generate(toy, 2, 50, seed=0, sampler=DPMSolver())).abs().mean() < 0.01
    assert (faces - generate(toy, 2, 50, seed=1, sampler=DPMSolver())).abs().mean() > 0.1


@pytest.mark.parametrize(
    "options", [{}, {"trained_betas": scheduler_betas(), "prediction_type": "v_prediction"}]
)
def test_a_scheduler_that_would_draw_something_else_is_refused(toy, options):
    with pytest.raises(ValueError, match="scheduler: make it with trained_betas"):
        draw_with(toy, DDIMScheduler(**options))


def test_ddpm_of_diffusers_draws_faces(toy):
    scheduler = DDPMScheduler(trained_betas=scheduler_betas(), timestep_spacing="trailing", clip_sample=False)
    torch.manual_seed(0)
    faces = draw_with(toy, scheduler, n=4, steps=20, seed=0)
    assert faces.shape == (4, 3, 32, 32) and 0.1 < faces.std() < 0.4


OPEN = """
import sys
import torch
from diffusers import DiffusionPipeline
folder, result = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
options = dict(negative_prompt="blue", num_images_per_prompt=2, num_inference_steps=3, guidance_scale=3)
noise = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
torch.save(pipeline("A crimson cap", latents=noise, output_type="pt", **options), result)
drawn = [pipeline(prompt, latents=noise, output_type="pt", **options) for prompt in ("red cap", "red teapot шапка cap")]
assert torch.equal(*drawn)  # and a line on stderr that names what it does not know
assert pipeline("red cap", **options)[1].size == (64, 64)
try:
    pipeline("cap " * 49)
except ValueError as error:
    assert "49 words and commas; 48 are the most" in str(error)
else:
    raise AssertionError("it reads a prompt that is too long")
assert not [name for name in sys.modules if name.startswith(("diffusion_course", "diffusion_utils"))]
"""


def test_a_pipeline_opens_without_the_course(tmp_path):
    """And draws the same: the scheduler takes Euler's steps along the line, which are those of DDIM."""
    model = small_model(image_size=16)
    model.config.wordings = [["an?", ""], ["crimson", "red"]]
    save_pipeline(model, tmp_path / "faces")
    save_pipeline(model, tmp_path / "faces")  # again, over the old one
    files = [str(tmp_path / "faces"), str(tmp_path / "images.pt")]
    environment = {
        **os.environ,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": "",
        "PYTHONUTF8": "1",
    }
    options = dict(cwd=tmp_path, env=environment, check=True, capture_output=True, encoding="utf-8")
    run = subprocess.run([sys.executable, "-c", OPEN, *files], **options)
    assert "does not know these words: teapot, шапка" in run.stderr
    options = dict(negative_prompt="blue", steps=line_times(3), guidance_scale=3, guidance_interval=(-1, 2))
    ours = text_to_image(model, "a crimson cap", n=2, seed=0, **options)
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), ours, atol=2e-3, rtol=0)
    head = (tmp_path / "faces" / "head.txt").read_text()
    assert f"LENGTH, SCALE = {attention.LENGTH}, {latents.SCALE}" in head


def test_a_pipeline_goes_over_nothing_else(tmp_path):
    (tmp_path / "README.md").write_text("my own")
    with pytest.raises(FileExistsError):
        save_pipeline(small_model(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own"


@pytest.mark.parametrize("change", [add_lora, add_control])
def test_no_pipeline_of_another_network(tmp_path, change):
    model = small_model()
    change(model.unet)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        save_pipeline(model, tmp_path / "faces")
    assert not (tmp_path / "faces").exists()


def tiny_pipeline(prediction_type):
    """A Stable Diffusion with random weights, small enough for a test, and with nothing from the network."""
    letters = [chr(number) for number in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2)
    text = CLIPTextConfig(
        vocab_size=len(words), bos_token_id=52, eos_token_id=53, max_position_embeddings=16, **shape
    )
    blocks = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=2)
    blocks["up_block_types"] = ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        **blocks,
    )
    blocks = dict(down_block_types=2 * ["DownEncoderBlock2D"], up_block_types=2 * ["UpDecoderBlock2D"])
    vae = AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4, **blocks)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type,
        clip_sample=False, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_our_sampler_draws_with_a_stable_diffusion(prediction_type):
    """Whose DDIM ends one step later than ours, so both come to nearly the same image."""
    pipeline = tiny_pipeline(prediction_type)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        "a cat", latents=noise, num_inference_steps=40, output_type="pt", guidance_scale=3
    ).images
    ours = draw_for(pipeline, "a cat", noise, steps=40, guidance_scale=3)
    assert ours.shape == (1, 3, 16, 16) and 0 <= ours.min() and ours.max() <= 1
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
    other = draw_for(pipeline, "a dog", noise, steps=40, guidance_scale=3)
    assert not torch.equal(ours, other)


# Fine-tuning ----------------------------------------------------------------------------


def test_a_new_word_changes_nothing_else():
    model = small_model()
    before, anything = output(model), model.encode_condition()[2]
    add_word(model, "zuzu")
    assert model.config.vocabulary == [*WORDS, "zuzu"]
    assert torch.equal(output(model), before) and torch.equal(model.encode_condition()[2], anything)
    assert not torch.allclose(output(model, "red zuzu"), before, atol=1e-3)
    other = small_model()
    add_word(other, "zuzu")
    assert torch.equal(output(other, "red zuzu"), output(model, "red zuzu"))
    assert not model.encoder.embedding.weight.requires_grad


@pytest.mark.parametrize("word", ["red", "olive", "Zuzu", "my dog", "zuzu!", ""])
@pytest.mark.filterwarnings("ignore:prompt. the model does not know")
def test_a_word_that_would_not_be_read(word):
    model = small_model()
    model.config.wordings = [["olive", "blue"]]
    with pytest.raises(ValueError, match=f"word: '{word}' would not be read"):
        add_word(model, word)
    assert model.config.vocabulary == WORDS


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(6, 5), (3, 7, 6)),
        (nn.Conv2d(6, 5, 3, padding=1), (3, 6, 8, 8)),
        (nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 8)),
        (nn.Conv2d(6, 5, 1), (3, 6, 8, 8)),
    ],
)
def test_lora_begins_as_the_layer_and_can_be_merged(layer, shape):
    lora, x = LoRA(layer, rank=2), torch.randn(shape)
    assert torch.equal(lora(x), layer(x))
    nn.init.normal_(lora.up.weight)
    assert not torch.allclose(lora(x), layer(x), atol=1e-2)
    torch.testing.assert_close(lora.merged()(x), lora(x), atol=1e-5, rtol=1e-5)
    assert learning(lora) == ["down.weight", "up.weight"]
    lora.scale = 0.5
    torch.testing.assert_close(lora.merged()(x), lora(x), atol=1e-5, rtol=1e-5)
    lora.scale = 0
    assert torch.equal(lora(x), layer(x)) and torch.equal(lora.merged()(x), layer(x))


def test_a_whole_network_with_lora(tmp_path):
    model = small_model()
    before, count = output(model), sum(weight.numel() for weight in model.unet.parameters())
    add_lora(model.unet, rank=1)
    loras = [module for module in model.modules() if isinstance(module, LoRA)]
    assert torch.equal(output(model), before) and len(loras) > 20
    assert 0 < sum(w.numel() for w in model.unet.parameters() if w.requires_grad) < 0.4 * count
    for lora in loras:
        nn.init.normal_(lora.up.weight, std=0.1)
    model.autoencoder.requires_grad_(False), model.encoder.requires_grad_(False)
    changed = output(model)
    assert not torch.allclose(changed, before, atol=1e-3)
    save_learned(model, tmp_path / "lora.safetensors")
    other = small_model()
    add_lora(other.unet, rank=1)
    weights = load_file(tmp_path / "lora.safetensors")
    assert not other.load_state_dict(weights, strict=False).unexpected_keys
    assert {weight.dtype for weight in weights.values()} == {torch.float16} and list(weights) == sorted(
        learning(model)
    )
    torch.testing.assert_close(output(other), changed, atol=0.02, rtol=0.02)
    merge_lora(model.unet)
    assert not any(isinstance(module, LoRA) for module in model.modules())
    torch.testing.assert_close(output(model), changed, atol=1e-4, rtol=1e-4)


def test_nothing_learned_goes_over_no_file(tmp_path):
    (tmp_path / "lora.safetensors").write_text("an older one")
    with pytest.raises(ValueError, match="none of its weights learns"):
        save_learned(small_model().requires_grad_(False), tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").read_text() == "an older one"


def test_tuning_leaves_the_statistics_of_latents():
    model = small_model().train()
    before = copy.deepcopy(model.norm.state_dict())
    loss = tuning_loss(model, (torch.rand(4, 4, 8, 8), tokens(["red", "blue", "cap", ""], WORDS)))
    assert loss.isfinite() and all(
        torch.equal(before[name], x) for name, x in model.norm.state_dict().items()
    )


# Control --------------------------------------------------------------------------------


def test_control_begins_without_a_change_and_learns():
    model = small_model()
    before = output(model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="model: nothing in it listens to lines"):
        set_control(model, torch.ones(1, 1, 32, 32))
    add_control(model.unet)
    set_control(model, torch.ones(1, 1, 32, 32))
    assert torch.equal(output(model), before)
    assert all("branch." in name or "control_in." in name or "joint." in name for name in learning(model))
    batch = torch.rand(4, 4, 8, 8), tokens(["red", "blue", "cap", ""], WORDS), torch.ones(4, 1, 32, 32)
    control_loss(model, batch).backward()
    joints = [level.joint for level in model.unet.down]
    assert len(joints) == 2 and all(joint.weight.grad.abs().sum() > 0 for joint in joints)
    for joint in joints:
        nn.init.normal_(joint.weight, std=0.1)
    set_control(model, torch.zeros(1, 1, 32, 32))
    none = output(model)
    set_control(model, torch.ones(1, 1, 32, 32))
    assert not torch.allclose(output(model), none, atol=1e-4)


def test_guidance_asks_twice_with_the_same_control():
    model = small_model().requires_grad_(False)
    add_control(model.unet)
    for level in model.unet.down:
        nn.init.normal_(level.joint.weight, std=0.1)
    lines = (torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    set_control(model, lines)
    options = dict(steps=2, seed=0, guidance_scale=3, guidance_interval=(-1, 2))
    together = text_to_image(model, "red cap", n=3, **options)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    set_control(model, lines[1:2])
    alone = text_to_image(model, "red cap", n=1, noise=noise[1:2], **options)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_edges_and_rough_lines():
    images = torch.zeros(2, 3, 64, 64)
    images[:, 0, 20:40, 20:40] = 1  # a red square
    lines = edges(images)
    assert lines.shape == (2, 1, 64, 64) and lines.unique().tolist() == [0, 1]
    assert lines[0, 0, 30, 19] == lines[0, 0, 30, 39] == lines[0, 0, 19, 30] == 1 and lines[0].sum() < 90
    torch.manual_seed(0)
    rough = roughen(lines.repeat(50, 1, 1, 1))
    counts = rough.sum(dim=(1, 2, 3))
    assert rough.unique().tolist() == [0, 1] and counts.min() < 40 and counts.max() > 150


def test_the_control_that_ships_is_small():
    assert CONTROL.stat().st_size < 2e6
