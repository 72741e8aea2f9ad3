"Is the plan right? The planned seconds and memory of a training step beside the real ones: the pocket step on a processor; SD 2.1, weights at random, on a graphics card"
import sys, time
from pathlib import Path
import numpy as np
import torch
from diffusers import DDPMScheduler
from facecontrol.loss import controlnet_loss, load_base, new_controlnet
from facecontrol.plan import SHAPES, count_step, machine_rate, plan
from facecontrol.pocket import path

def resident(peak=False):
    "Bytes of this process that are in memory, or were at most"
    field = 'VmHWM' if peak else 'VmRSS'
    return 1024 * int(next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field)).split()[1])

def step(unet, controlnet, scheduler, optimizer, batch, pixels, device, low):
    "One training step on random numbers"
    latents = torch.randn(batch, unet.config.in_channels, pixels // 8, pixels // 8, device=device)
    hidden, mask = torch.randn(batch, 77, unet.config.cross_attention_dim, device=device), torch.rand(batch, 3, pixels, pixels, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=low):
        controlnet_loss(unet, controlnet, scheduler, latents, torch.randn_like(latents), torch.randint(1000, (batch,), device=device), hidden, mask).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def timed(work, times, device):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        if device == 'cuda': torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))

def on_processor(times, batch=32):
    base = load_base('pocket')
    unet, controlnet = (m.to(memory_format=torch.channels_last) for m in (base.unet, new_controlnet(base.unet)))
    before = resident()
    optimizer = torch.optim.AdamW(controlnet.parameters(), 1e-5, fused=True)
    real = timed(lambda: step(unet, controlnet, base.scheduler, optimizer, batch, 128, 'cpu', False), times + 1, 'cpu')
    grown = (resident(peak=True) - before) / 2**20 # before the plan plays a step of its own
    planned = plan(path('sd'), train_batch_size=batch, mixed_precision='no', gpu='this')
    weights = sum(p.nbytes for m in (unet, controlnet) for p in m.parameters())
    print(f'pocket, batch {batch}, {torch.get_num_threads()} threads: planned {planned.seconds_per_step:.2f} s a step, real {real:.2f} ({planned.seconds_per_step / real - 1:+.0%}, wanted within 30 %)')
    alive = (planned.gigabytes - .6) * 2**10 - weights / 2**20 # the .6 are a graphics card's own
    print(f'memory over the weights: planned {alive:.0f} MiB, the process grew by {grown:.0f} MiB ({alive / grown - 1:+.0%}, wanted within 20 %)')

def on_card(times, batch=4):
    from diffusers import UNet2DConditionModel
    name = next((n for n in ('H200', 'H100', 'A100', 'L4', 'T4') if n in torch.cuda.get_device_name()), 'A100')
    torch.set_default_device('cuda')
    unet = UNet2DConditionModel(**SHAPES['sd21'][0]).requires_grad_(False)
    controlnet = new_controlnet(unet)
    unet.to(torch.bfloat16)
    optimizer, scheduler = torch.optim.AdamW(controlnet.parameters(), 1e-5, fused=True), DDPMScheduler()
    torch.cuda.reset_peak_memory_stats()
    real = timed(lambda: step(unet, controlnet, scheduler, optimizer, batch, 512, 'cuda', True), times + 1, 'cuda')
    alive = torch.cuda.max_memory_allocated() / 2**30
    torch.set_default_device('cpu')
    counted, planned = count_step('sd21', 512, 'bf16'), plan('sd21', train_batch_size=batch, gpu=name)
    expected = (counted.alive(batch) + 8 * counted.trained) / 2**30
    print(f'SD 2.1, batch {batch}, bfloat16, {torch.cuda.get_device_name()}: planned {planned.seconds_per_step:.3f} s a step, real {real:.3f}; '
          f'planned {expected:.1f} GiB alive, real {alive:.1f} ({expected / alive - 1:+.0%}); share of the published rate {0.25 * planned.seconds_per_step / real:.0%}')

if __name__ == '__main__':
    times = int(sys.argv[1]) if sys.argv[1:] else 10
    on_processor(times)
    print(f"torch {torch.__version__}, this processor {machine_rate(path('sd'), 32):.3f} TFLOP/s")
    if torch.cuda.is_available(): on_card(times)
