"""How fast a training step is, and how small, beside diffusers' script.

    python benchmarks/train.py                            the pocket world, beside the script's step written from diffusers' public classes
    python benchmarks/train.py --script PATH              beside the script itself (diffusers/examples/controlnet/train_controlnet.py), and loss by loss
    python benchmarks/train.py --script PATH --full       Stable Diffusion 2.1's size with random weights, on a GPU
    python benchmarks/train.py --count                    FLOPs and peak bytes at that size, on tensors without contents
"""
import argparse, platform, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path
import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))
import full, script
from facecontrol.faces import draw_faces, face_caption
from facecontrol.landmarks import draw_mask
from facecontrol.loss import Batch, controlnet_loss, load_base, new_controlnet
from facecontrol.memory import LADDER, Rung, StepInBackward, checkpoint_blocks, make_optimizer
from facecontrol.pocket import path
from facecontrol.train import training_steps

def machine():
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'
    return f"{name}; torch {torch.__version__}, diffusers {version('diffusers')}"

def drawn(n, size): # rows in the published columns
    faces = draw_faces(range(40_000, 40_000 + n), size=size)
    return [dict(image=Image.fromarray(image), spiga_seg=draw_mask(points, size), image_caption=face_caption(face), row=row)
            for row, (image, points, face) in enumerate(zip(faces['image'], faces['visible'], faces['faces']))]

def published(rows, folder): # as the script reads them
    (folder/'data').mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder/'data/train-00000-of-00001.parquet')
    return folder

def pocket(script_path, steps, batch, rounds):
    "A step of ours and of theirs, in turns"
    with tempfile.TemporaryDirectory() as work:
        work, base = Path(work), str(path('sd'))
        unet = load_base(base).unet
        size = unet.config.sample_size * 8
        rows = drawn(4 * batch, size)
        dataset, start = published(rows, work/'dataset'), work/'start'
        new_controlnet(unet).save_pretrained(start)
        flags = ['--pretrained_model_name_or_path', base, '--dataset_name', dataset, '--controlnet_model_name_or_path', start, '--conditioning_image_column', 'spiga_seg',
            '--caption_column', 'image_caption', '--resolution', size, '--learning_rate', 1e-3, '--max_train_steps', steps, '--train_batch_size', batch, '--seed', 0]
        found = []
        for n in range(rounds):
            theirs = script.run_script(script_path, [*flags, '--output_dir', work/f'{n}']) if script_path else script.reference(base, rows, start, steps, batch, 1e-3, size)
            equal = script.ours(base, rows, start, theirs, 1e-3, size)
            fast = script.ours(base, rows, start, theirs, 1e-3, size, channels_last=True)
            loss, weight = script.apart(equal, theirs)
            found.append([np.median(run.seconds) for run in (theirs, equal, fast)])
            print(f'round {n + 1}: losses at most {loss:.1e} apart over {steps} steps, weights {weight:.1e}', flush=True)
        theirs, equal, fast = np.median(found, axis=0)
        print(f"{'the script' if script_path else 'its step'} {theirs:.3f} s, ours in the same order of additions {equal:.3f} s ({equal / theirs:.2f}), "
              f'with channels last {fast:.3f} s ({fast / theirs:.2f}); batch {batch}, {size} px')

def matrix_rate(n=8192): # TFLOP/s of bf16 matrix products
    a, seconds = torch.randn(n, n, device='cuda', dtype=torch.bfloat16), []
    for _ in range(30):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * n**3 / np.median(seconds) / 1e12

def full_step(rung, batch, steps, compile=False, warm=10, fraction=None):
    "Seconds a step, GiB allocated, GiB reserved: ours at Stable Diffusion 2.1's size"
    if fraction: torch.cuda.set_per_process_memory_fraction(fraction)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    half = torch.bfloat16 if rung.frozen_bf16 else torch.float32
    with torch.device('cuda'): unet = full.sd21_unet().requires_grad_(False).eval()
    controlnet = new_controlnet(unet).to('cuda', torch.bfloat16 if rung.trained_bf16 else torch.float32, memory_format=torch.channels_last)
    unet.to(dtype=half, memory_format=torch.channels_last)
    for blocks in (controlnet, unet.up_blocks): checkpoint_blocks(blocks, rung.checkpointing)
    if compile:
        for block in (*controlnet.down_blocks, controlnet.mid_block, *unet.down_blocks, unet.mid_block, *unet.up_blocks): block.compile()
    def make(some): return make_optimizer(some, 1e-5, state_bits=rung.state_bits)
    optimizer = StepInBackward(controlnet.parameters(), make, 1.) if rung.in_backward else make(controlnet.parameters())
    def batches():
        while True: yield Batch(torch.randn(batch, 4, 64, 64, device='cuda'), torch.randn(batch, 4, 64, 64, device='cuda'), torch.randint(1000, (batch,), device='cuda'),
            torch.randn(batch, 77, 1024, device='cuda', dtype=half), torch.randint(256, (batch, 3, 512, 512), device='cuda', dtype=torch.uint8) / 255, None)
    scheduler = full.DDPMScheduler(beta_schedule='scaled_linear')
    stepping = training_steps(Accelerator(mixed_precision='no'), controlnet, optimizer, lambda step: 1e-5, lambda b: controlnet_loss(unet, controlnet, scheduler, *b), batches(), range(warm + steps))
    for _ in range(warm): next(stepping)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in stepping: pass
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps, torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30

def full_script(script_path, steps, work, *more): # seconds a step of the script
    flags = ['--pretrained_model_name_or_path', work/'base', '--dataset_name', work/'dataset', '--conditioning_image_column', 'spiga_seg', '--caption_column', 'image_caption',
        '--resolution', 512, '--max_train_steps', steps + 10, '--train_batch_size', 4, '--seed', 0, '--checkpointing_steps', 10_000, '--output_dir', work/f'{time.time()}']
    torch.cuda.reset_peak_memory_stats()
    return float(np.median(script.run_script(script_path, flags + list(more)).seconds[-steps:])), torch.cuda.max_memory_allocated() / 2**30

def at_full_size(script_path, steps, rounds):
    "Ours and theirs at Stable Diffusion 2.1's size, in turns"
    rate, flops = matrix_rate(), full.count().tflop
    half = Rung(frozen_bf16=True)
    ways = {'bf16': (half, False), 'bf16, compiled': (half, True), 'equal': (LADDER['equal']._replace(frozen_bf16=True), False)} | {name: (LADDER[name], False) for name in ('8gb', '6gb')}
    for name, (rung, compile) in ways.items():
        seconds, allocated, reserved = np.median([full_step(rung, 4, steps, compile) for _ in range(rounds)], axis=0)
        print(f'ours, {name}: {seconds:.3f} s, {allocated:.1f} GiB allocated, {reserved:.1f} reserved, {flops / seconds / rate:.0%} of the measured matrix rate', flush=True)
    if not script_path: return
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        full.write_sd21(work/'base')
        published(drawn(64, 512), work/'dataset')
        for name, more in dict(shipped=['--mixed_precision', 'bf16'], tuned=['--mixed_precision', 'bf16', '--dataloader_num_workers', 8, '--allow_tf32', '--set_grads_to_none'], published=[]).items():
            seconds, allocated = np.median([full_script(script_path, steps, work, *more) for _ in range(rounds)], axis=0)
            print(f'the script, {name}: {seconds:.3f} s, {allocated:.1f} GiB allocated', flush=True)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--script', help="path of diffusers' train_controlnet.py")
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--count', action='store_true')
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args()
    print(machine())
    if given.count:
        for name, rung in dict(cached=Rung(), **LADDER).items(): print(name, full.count(rung, batch=1 if name == '4gb' else 4))
        print('the script', full.count(cached=False))
    elif given.full: at_full_size(given.script, given.steps, given.rounds)
    else: pocket(given.script, given.steps, given.batch, given.rounds)
