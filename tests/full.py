"Stable Diffusion 2.1 at its true size: with random weights for a GPU, or counted on tensors without contents"
import gc
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch._subclasses import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel
from facecontrol.loss import controlnet_loss
from facecontrol.memory import Rung, checkpoint_blocks
from facecontrol.plan import SHAPES, _flop_counter, memory_meter
from tiny import tiny_tokenizer

_UNET, _VAE, (_TEXT,) = SHAPES['sd21']
def sd21_unet(): return UNet2DConditionModel(**_UNET)
def sd21_vae(): return AutoencoderKL(**_VAE)
def sd21_text_encoder(): return CLIPTextModel(CLIPTextConfig(**_TEXT))

def write_sd21(
    folder:Path, # receives a Stable Diffusion of random numbers: right for its speed, useless for pictures
)->None:
    "Write Stable Diffusion 2.1 with random weights"
    StableDiffusionPipeline(vae=sd21_vae(), text_encoder=sd21_text_encoder(), tokenizer=tiny_tokenizer(folder/'tokenizer'), unet=sd21_unet(),
        scheduler=DDPMScheduler(beta_schedule='scaled_linear'), safety_checker=None, feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)


class Counted(NamedTuple):
    "What a step takes"
    tflop:float # matrix products, convolutions and attention
    peak:float # of tensors alive at one time, GiB

@contextmanager
def _kind(dtype): # new tensors are of this kind: without contents, none can be changed afterwards
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try: yield
    finally: torch.set_default_dtype(before)

def count(
    rung:Rung=Rung(), # how memory is saved
    batch:int=4, # rows
    side:int=64, # of the latents
    cached:bool=True, # False: with the VAE and the text encoder, as in diffusers' script
    real:bool=False, # compute it all, with random numbers: minutes on a processor, and the memory that is counted
)->Counted:
    "Take a step of Stable Diffusion 2.1, without computing anything unless told to, and count"
    half, own = (torch.bfloat16 if low else torch.float32 for low in (rung.frozen_bf16, rung.trained_bf16))
    with nullcontext() if real else FakeTensorMode():
        with _kind(half): unet, frozen = sd21_unet().requires_grad_(False), [] if cached else [sd21_vae().requires_grad_(False), sd21_text_encoder().requires_grad_(False)]
        with _kind(own): controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        for blocks in (controlnet, unet.up_blocks): checkpoint_blocks(blocks, rung.checkpointing)
        if rung.in_backward:
            for p in controlnet.parameters(): p.register_post_accumulate_grad_hook(lambda p: setattr(p, 'grad', None))
        # what AdamW remembers stands there as plain bytes, two numbers a weight; its step adds nothing that lasts
        remembered = [torch.empty(p.numel() * rung.state_bits // 8, dtype=torch.uint8) for p in controlnet.parameters() for _ in range(2)]
        held = [list(model.parameters()) for model in (unet, controlnet, *frozen)]
        for p in list(controlnet.parameters())[::8]: p.register_post_accumulate_grad_hook(_sweep)
        gc.collect()
        gc.freeze()
        with memory_meter(held, remembered) as meter, _flop_counter() as flops: _step(unet, controlnet, frozen, batch, side, half)
        gc.unfreeze()
        return Counted(flops.get_total_flops() / 1e12, max(meter.history) / 2**30)

def _sweep(p): # watching operations from Python leaves circles behind, which hold tensors that nobody needs
    gc.collect()

def _step(unet, controlnet, frozen, batch, side, half):
    latents, text = torch.empty(batch, 4, side, side), torch.empty(batch, 77, 1024, dtype=half)
    if frozen:
        latents = frozen[0].encode(torch.empty(batch, 3, 8 * side, 8 * side, dtype=half)).latent_dist.mode().float()
        text = frozen[1](torch.zeros(batch, 77, dtype=torch.long))[0]
    mask, timesteps = torch.empty(batch, 3, 8 * side, 8 * side), torch.zeros(batch, dtype=torch.long)
    controlnet_loss(unet, controlnet, DDPMScheduler(beta_schedule='scaled_linear'), latents, torch.empty_like(latents), timesteps, text, mask).backward()
