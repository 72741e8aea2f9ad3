"""How fast a training step is, and how small, beside diffusers' script.

    python benchmarks/train.py                            the pocket world, beside the script's step written from diffusers' public classes
    python benchmarks/train.py --script PATH              beside the script itself (diffusers/examples/controlnet/train_controlnet.py), and loss by loss
    python benchmarks/train.py --script PATH --full       Stable Diffusion 2.1's size with random weights, on a GPU
    python benchmarks/train.py --count                    FLOPs and peak bytes at that size, on tensors without contents

Ours and theirs take turns in one run, and each figure is the median of the rounds. A step's seconds are from one loss to the next, unpacking
of masks included; ours has its latents and captions in the cache, whose building is timed in the pocket world and counted into the epochs there.
"""
import argparse, gc, os, platform, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))
import full, script
from facecontrol.faces import draw_faces, face_caption
from facecontrol.landmarks import draw_mask
from facecontrol.loss import cache_latents, controlnet_loss, draw_batch, frozen_models, load_base, new_controlnet
from facecontrol.memory import LADDER, Rung, StepInBackward, checkpoint_blocks, make_optimizer
from facecontrol.pocket import path
from facecontrol.train import ahead, compile_blocks, places, train_controlnet, training_steps

def machine():
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'
    return f"{name}; " + ', '.join(f'{library} {version(library)}' for library in ('torch', 'diffusers', 'accelerate')) + f', Python {platform.python_version()}'

def table(head, *lines): # strings, in columns
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    for line in (head, *lines): print('  '.join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]))

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
            compiled, half = (script.ours(base, rows, start, theirs, 1e-3, size, channels_last=True, **more) for more in (dict(compile=True), dict(frozen_bf16=True)))
            begun = time.perf_counter()
            cache_latents(load_base(base), rows, size)
            caching = (time.perf_counter() - begun) * batch / len(rows) # for as many rows as a step takes
            found.append([*(np.median(run.seconds) for run in (theirs, equal, fast, compiled, half)), caching])
            print(f'round {n + 1}: losses at most {loss:.1e} apart over {steps} steps, weights {weight:.1e}', flush=True)
        names = ('the script' if script_path else 'its step, from public classes', 'ours, same order of additions', 'ours, channels last', 'ours, channels last, compiled',
            'ours, channels last, frozen UNet in bfloat16')
        *medians, caching = np.median(found, axis=0)
        def epochs(n, seconds): return f'{(caching * (seconds != medians[0]) + n * seconds) / (n * medians[0]):.2f}' # theirs caches nothing
        print(f'pocket world, float32 but for the last, batch {batch}, {size} px; medians of {rounds} rounds of {steps} steps; the cache takes {caching:.3f} s for the rows of a step')
        table(['', 's a step', 'of theirs', 'one epoch', 'three'], *([name, f'{seconds:.3f}', f'{seconds / medians[0]:.2f}', epochs(1, seconds), epochs(3, seconds)] for name, seconds in zip(names, medians)))

def matrix_rate(n=8192): # TFLOP/s of bf16 matrix products
    a, seconds = torch.randn(n, n, device='cuda', dtype=torch.bfloat16), []
    for _ in range(30):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * n**3 / np.median(seconds) / 1e12

def clear(): # what the run before has left behind: memory, a precision, compiled blocks, settings
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.compiler.reset()
    AcceleratorState._reset_state(True)

def write_full(work, n): # a base of random weights, a dataset of n rows in the published columns, and its cache
    full.write_sd21(work/'base')
    rows = drawn(n, 512)
    published(rows, work/'dataset')
    base = load_base(work/'base')
    for model in frozen_models(base): model.to('cuda', torch.bfloat16)
    return cache_latents(base, rows, 512)

def full_step(work, cache, rung, steps, compile=False, warm=10, batch=4):
    "Seconds a step, GiB allocated, GiB reserved: ours at Stable Diffusion 2.1's size"
    clear()
    unet = UNet2DConditionModel.from_pretrained(work/'base', subfolder='unet').requires_grad_(False).eval()
    controlnet = new_controlnet(unet).to('cuda', torch.bfloat16 if rung.trained_bf16 else torch.float32, memory_format=torch.channels_last)
    unet.to('cuda', torch.bfloat16 if rung.frozen_bf16 else torch.float32, memory_format=torch.channels_last)
    for blocks in (controlnet, unet.up_blocks): checkpoint_blocks(blocks, rung.checkpointing)
    if compile: compile_blocks(controlnet, unet)
    def make(some): return make_optimizer(some, 1e-5, state_bits=rung.state_bits)
    optimizer = StepInBackward(controlnet.parameters(), make, 1.) if rung.in_backward else make(controlnet.parameters())
    batches = ahead(lambda step, part: draw_batch(cache, 0, step, batch, part, device='cuda'), places(range(warm + steps), batch))
    scheduler = DDPMScheduler.from_pretrained(work/'base', subfolder='scheduler')
    stepping = training_steps(Accelerator(mixed_precision='no'), controlnet, optimizer, lambda step: 1e-5, lambda b: controlnet_loss(unet, controlnet, scheduler, *b), batches, range(warm + steps))
    for _ in range(warm): next(stepping)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in stepping: pass
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps, torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30

def full_script(work, script_path, steps, more): # the same three of the script
    clear()
    flags = ['--pretrained_model_name_or_path', work/'base', '--dataset_name', work/'dataset', '--conditioning_image_column', 'spiga_seg', '--caption_column', 'image_caption',
        '--resolution', 512, '--max_train_steps', steps + 10, '--train_batch_size', 4, '--seed', 0, '--checkpointing_steps', 10_000, '--output_dir', work/f'{time.time()}']
    seconds = float(np.mean(script.run_script(script_path, flags + more).seconds[-steps:]))
    return seconds, torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30

HALF = Rung(frozen_bf16=True)
OURS = {'bf16': (HALF, False), 'bf16, compiled': (HALF, True), 'equal, bf16': (LADDER['equal']._replace(frozen_bf16=True), False),
    '8gb': (LADDER['8gb'], False), '6gb': (LADDER['6gb'], False)}
THEIRS = {'as published, float32': [], 'as shipped, bf16': ['--mixed_precision', 'bf16'],
    'tuned': ['--mixed_precision', 'bf16', '--dataloader_num_workers', 8, '--allow_tf32', '--set_grads_to_none']}

def at_full_size(script_path, steps, rounds):
    "Ours and theirs at Stable Diffusion 2.1's size, in turns"
    rate, flops, found = matrix_rate(), full.count().tflop, {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        cache = write_full(work, 4 * (steps + 10)) # one epoch: at its end the script would start its loaders anew
        ways = {f'ours, {name}': lambda rung=rung, compile=compile: full_step(work, cache, rung, steps, compile) for name, (rung, compile) in OURS.items()}
        if script_path: ways |= {f'the script, {name}': lambda more=more: full_script(work, script_path, steps, more) for name, more in THEIRS.items()}
        for n in range(rounds):
            for name, way in ways.items():
                found.setdefault(name, []).append(way())
                print(f'round {n + 1}: {name} {found[name][-1][0]:.3f} s', flush=True)
        fits = {card: fits_into(work, card) for card in (8, 6)}
    medians = {name: np.median(some, axis=0) for name, some in found.items()}
    print(f'Stable Diffusion 2.1, random weights, batch 4, 512 px; medians of {rounds} rounds of {steps} steps')
    table(['', 's a step', 'GiB allocated', 'GiB reserved', f'of {rate:.0f} TFLOP/s'],   # what a cached step must compute, over what matrix products reach here
        *([name, f'{seconds:.3f}', f'{allocated:.1f}', f'{reserved:.1f}', f'{flops / seconds / rate:.0%}' if name.startswith('ours') else ''] for name, (seconds, allocated, reserved) in medians.items()))
    for card, fit in fits.items(): print(f"--memory {card}gb in a card of {card} GiB, 0.6 of it the driver's: {'fits' if fit else 'does not fit'}")

def fits_into(work, card): # GiB
    "The trainer itself, from its cache to its last look, in a part of the GPU"
    clear()
    torch.cuda.set_per_process_memory_fraction((card - .6) * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    draw_mask(draw_faces([0], size=512)['visible'][0], 512).save(work/'mask.png')
    try: return bool(train_controlnet(work/'base', work/'dataset', work/f'{card}gb', max_train_samples=32, max_train_steps=3, memory=f'{card}gb', report_to='none',
        validation_prompt=['a person'], validation_image=[work/'mask.png']))
    except ValueError as error:
        if not str(error).startswith('out of memory'): raise
        return False
    finally: torch.cuda.set_per_process_memory_fraction(1.)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--script', help="path of diffusers' train_controlnet.py")
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--count', action='store_true')
    parser.add_argument('--steps', type=int, help='timed steps of a round: 30, or 50 with --full')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args()
    print(machine())
    if given.count:
        counted = {name: (full.count(rung, batch), batch) for name, rung, batch in (('cached, float32', Rung(), 4), ('cached, bf16', HALF, 4),
            *((name, rung, 1 if name == '4gb' else 4) for name, rung in LADDER.items()), ('equal, bf16', OURS['equal, bf16'][0], 4))}
        counted |= {f'not cached, {name}': (full.count(rung, cached=False), 4) for name, rung in (('float32', Rung()), ('bf16', HALF))}
        table(['', 'batch', 'TFLOP a step', 'GiB alive'], *([name, str(batch), f'{step.tflop:.2f}', f'{step.peak:.2f}'] for name, (step, batch) in counted.items()))
    elif given.full: at_full_size(given.script, given.steps or 50, given.rounds)
    else:
        os.environ['ACCELERATE_USE_CPU'] = 'true' # theirs, as ours
        pocket(given.script, given.steps or 30, given.batch, given.rounds)
