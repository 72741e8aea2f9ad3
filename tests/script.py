"Two yardsticks with their dice written down: diffusers' own script, and its step written from diffusers' public classes"
import importlib.util, sys, time, types
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection
from facecontrol.loss import cache_latents, controlnet_loss, gather, load_base, pixels
from facecontrol.memory import make_optimizer
from facecontrol.train import compile_blocks, training_steps


class Recorded(NamedTuple):
    "What a yardstick drew, and what came of it"
    rows:list # of each step: which rows
    spread:list # of each step `(b, c, h, w)`: where in the VAE's Gaussian
    noise:list # of each step `(b, c, h, w)`
    timesteps:list # of each step `(b,)`
    losses:list # of each step
    seconds:list # of each step but the first
    weights:dict # the ControlNet's, at the end


def reference(
    folder:str, # a Stable Diffusion
    rows, # dicts with `image`, `spiga_seg`, `image_caption`
    start:Path, # a ControlNet
    steps:int, # to take
    batch_size:int, # rows a step
    learning_rate:float, # of AdamW
    resolution:int, # px
)->Recorded:
    "Every step from the pictures on, as everybody does it"
    parts = (AutoencoderKL, 'vae'), (UNet2DConditionModel, 'unet'), (DDPMScheduler, 'scheduler')
    vae, unet, scheduler = (kind.from_pretrained(folder, subfolder=name) for kind, name in parts)
    text_encoder, tokenizer = CLIPTextModel.from_pretrained(folder, subfolder='text_encoder', dtype=torch.float32), AutoTokenizer.from_pretrained(folder, subfolder='tokenizer')
    controlnet = ControlNetModel.from_pretrained(start).train()
    for model in (vae, unet, text_encoder): model.requires_grad_(False)
    optimizer, rng, found = torch.optim.AdamW(controlnet.parameters(), learning_rate, weight_decay=1e-2), torch.Generator().manual_seed(0), Recorded([], [], [], [], [], [], {})
    def randn(): return torch.randn((batch_size, vae.config.latent_channels, resolution // 8, resolution // 8), generator=rng)
    marks = []
    for step in range(steps):
        batch = [rows[int(i)] for i in torch.randperm(len(rows), generator=rng)[:batch_size]]
        spread, noise = randn(), randn()
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch_size,), generator=rng)
        gaussian = vae.encode(torch.stack([pixels(row['image'], resolution) for row in batch]) / 255 * 2 - 1).latent_dist
        latents = (gaussian.mean + gaussian.std * spread) * vae.config.scaling_factor
        tokens = tokenizer([row['image_caption'] for row in batch], max_length=tokenizer.model_max_length, padding='max_length', truncation=True, return_tensors='pt')
        text = text_encoder(tokens.input_ids)[0]
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        downs, mid = controlnet(noisy_latents, timesteps, encoder_hidden_states=text, return_dict=False,
            controlnet_cond=torch.stack([pixels(row['spiga_seg'], resolution) for row in batch]) / 255)
        model_pred = unet(noisy_latents, timesteps, encoder_hidden_states=text, down_block_additional_residuals=downs, mid_block_additional_residual=mid).sample
        target = noise if scheduler.config.prediction_type == 'epsilon' else scheduler.get_velocity(latents, noise, timesteps)
        loss = F.mse_loss(model_pred, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        marks.append(time.perf_counter())
        for kept, value in zip(found[:5], ([row['row'] for row in batch], spread, noise, timesteps, loss.item())): kept.append(value)
    return found._replace(seconds=np.diff(marks).tolist(), weights=controlnet.state_dict())


def reference_xl(
    folder:str, # a Stable Diffusion XL
    rows, # as `reference` takes them; one batch
    start:Path, # a ControlNet
    spread:torch.Tensor, # `(b, c, h, w)`: where in the VAE's Gaussian
    noise:torch.Tensor, # `(b, c, h, w)`
    timesteps:torch.Tensor, # `(b,)`
    resolution:int, # px
)->float: # its loss
    "One step of an XL, from the pictures on, as everybody does it"
    parts = (AutoencoderKL, 'vae'), (UNet2DConditionModel, 'unet'), (DDPMScheduler, 'scheduler')
    vae, unet, scheduler = (kind.from_pretrained(folder, subfolder=name) for kind, name in parts)
    captions, embeds = [row['image_caption'] for row in rows], []
    for n, kind in (('', CLIPTextModel), ('_2', CLIPTextModelWithProjection)):
        tokenizer, text_encoder = AutoTokenizer.from_pretrained(folder, subfolder=f'tokenizer{n}'), kind.from_pretrained(folder, subfolder=f'text_encoder{n}', dtype=torch.float32)
        tokens = tokenizer(captions, max_length=tokenizer.model_max_length, padding='max_length', truncation=True, return_tensors='pt')
        heard = text_encoder(tokens.input_ids, output_hidden_states=True)
        embeds.append(heard.hidden_states[-2])      # the last but one layer of both; the sentence as a whole from the second
    given = dict(encoder_hidden_states=torch.cat(embeds, dim=-1), added_cond_kwargs=dict(text_embeds=heard[0],
        time_ids=torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * len(rows))))   # original size, corner of the crop, target size
    gaussian = vae.encode(torch.stack([pixels(row['image'], resolution) for row in rows]) / 255 * 2 - 1).latent_dist
    noisy_latents = scheduler.add_noise((gaussian.mean + gaussian.std * spread) * vae.config.scaling_factor, noise, timesteps)
    downs, mid = ControlNetModel.from_pretrained(start)(noisy_latents, timesteps, return_dict=False, **given,
        controlnet_cond=torch.stack([pixels(row['spiga_seg'], resolution) for row in rows]) / 255)
    model_pred = unet(noisy_latents, timesteps, down_block_additional_residuals=downs, mid_block_additional_residual=mid, **given).sample
    return F.mse_loss(model_pred, noise).item()


def torchvision_stand_in()->types.ModuleType: # what the script uses of torchvision.transforms, which this project does not install
    "Five transforms"
    transforms = types.ModuleType('torchvision.transforms')
    transforms.InterpolationMode = types.SimpleNamespace(BILINEAR=Image.Resampling.BILINEAR)
    transforms.Compose = lambda steps: lambda image: [image := step(image) for step in steps][-1]
    transforms.Resize = lambda size, interpolation: lambda image: image if min(image.size) == size else image.resize([side * size // min(image.size) for side in image.size], interpolation)
    transforms.CenterCrop = lambda size: lambda image: image if image.size == (size, size) else ImageOps.fit(image, (size, size))
    transforms.ToTensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() / 255
    transforms.Normalize = lambda mean, std: lambda tensor: (tensor - mean[0]) / std[0]
    return transforms

def load_script(
    path:str|Path, # of diffusers' examples/controlnet/train_controlnet.py
)->types.ModuleType:
    "Import the script as it is"
    torchvision = types.ModuleType('torchvision')
    torchvision.transforms = torchvision_stand_in()
    spec = importlib.util.spec_from_file_location('train_controlnet_script', path)
    script = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {'torchvision': torchvision, 'torchvision.transforms': torchvision.transforms}): spec.loader.exec_module(script)
    return script

def run_script(
    path:str|Path, # of diffusers' examples/controlnet/train_controlnet.py
    flags:list, # its command line; the dataset should have a column `row`
    clock=time.perf_counter, # seconds; `time.process_time` does not notice what else the machine does
)->Recorded:
    "Run the script, and write down what it draws and how long its steps take"
    script, found, last = load_script(path), Recorded([], [], [], [], [], [], {}), []
    def recorded(function, into, wanted=lambda *args: True):
        def call(*args, **kwargs):
            value = function(*args, **kwargs)
            if wanted(*args): into.append(value.detach().clone()) # where it is: to fetch it would make the script wait for its device
            return value
        return call
    def collate(examples, original=script.collate_fn):
        found.rows.append([example['row'] for example in examples])
        return original(examples)
    def mse_loss(*args, original=F.mse_loss, **kwargs):
        loss, now = original(*args, **kwargs), clock()
        found.losses.append(loss.detach())
        if last: found.seconds.append(now - last.pop())
        last.append(now)
        return loss
    args = script.parse_args([str(flag) for flag in flags])
    with ExitStack() as stack:
        for place, what in (('diffusers.models.autoencoders.vae.randn_tensor', recorded(sys.modules['diffusers.models.autoencoders.vae'].randn_tensor, found.spread)),
                ('torch.randn_like', recorded(torch.randn_like, found.noise)), ('torch.randint', recorded(torch.randint, found.timesteps, lambda *args: len(args) == 3)),
                ('torch.nn.functional.mse_loss', mse_loss)): stack.enter_context(patch(place, what))
        stack.enter_context(patch.object(script, 'collate_fn', collate))
        script.main(args)
    fetched = {name: [value.cpu() for value in getattr(found, name)] for name in ('spread', 'noise', 'timesteps')}
    return found._replace(**fetched, losses=torch.stack(found.losses).tolist(), weights=ControlNetModel.from_pretrained(args.output_dir).state_dict())


def ours(
    folder:str, # a Stable Diffusion
    rows, # as `reference` takes them
    start:Path, # a ControlNet
    recorded:Recorded, # whose dice to use
    learning_rate:float, # of AdamW
    resolution:int, # px
    channels_last:bool=False, # faster, and adds up in another order
    compile:bool=False, # faster still, once that is done
    fused:bool=True, # AdamW in one pass, which rounds in other places than the yardstick's
    frozen_bf16:bool=False, # the UNet in bfloat16
)->Recorded:
    "Our loop on another's dice"
    base, controlnet = load_base(folder), ControlNetModel.from_pretrained(start)
    cache, marks = cache_latents(base, rows, resolution, batch_size=len(recorded.rows[0])), [time.perf_counter()]
    if channels_last:
        for model in (controlnet, base.unet): model.to(memory_format=torch.channels_last)
    if frozen_bf16: base.unet.to(torch.bfloat16)
    if compile: compile_blocks(controlnet, base.unet)
    batches = (gather(cache, r, [cache.prompts[row][0] for row in r], [0] * len(r), *draws) for r, *draws in zip(*recorded[:4]))
    optimizer, losses = make_optimizer(controlnet.parameters(), learning_rate) if fused else torch.optim.AdamW(controlnet.parameters(), learning_rate), []
    for loss in training_steps(Accelerator(mixed_precision='no'), controlnet, optimizer, lambda step: learning_rate,
            lambda batch: controlnet_loss(base.unet, controlnet, base.scheduler, *batch), batches, range(len(recorded.losses))):
        losses.append(loss.item())
        marks.append(time.perf_counter())
    return recorded._replace(losses=losses, seconds=np.diff(marks)[1:].tolist(), weights=controlnet.state_dict())

def apart(
    a:Recorded, # ours
    b:Recorded, # the yardstick
)->tuple: # largest difference of a loss, and of a weight
    "How far two runs are from each other"
    return max(abs(x - y) for x, y in zip(a.losses, b.losses)), max(float((a.weights[name] - b.weights[name]).abs().max()) for name in b.weights)
