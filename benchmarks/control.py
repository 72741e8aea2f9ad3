"""Time to control: how long until faces follow the mask, for one recipe after another, each with several seeds.

    python benchmarks/control.py [--script PATH] [--steps 600] [--seeds 3] [--only cubic uniform …] [--out control.json]

The clock runs while latents are cached and while steps are taken, and stands still while pictures are drawn and measured. Without --only three recipes
run: the trainer's own, the same with uniform timesteps, and the published numbers; a recipe and seed take about ten minutes on two cores.
With --script, diffusers' train_controlnet.py runs on the same faces, at the published learning rate and batch and at those of a small sweep. Its time is
the median of its steps; reading its models, preparing its data and saving are not counted, so that the comparison errs in its favour.
The recipe `reward` is taught by the detector that also measures: what it gains may be the detector's weakness, and not control.
"""
import argparse, json, sys, tempfile, time
from pathlib import Path
from typing import NamedTuple
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import ControlNetModel
from diffusers.utils.logging import disable_progress_bar
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]/'tests')]
import script
from facecontrol.detect import load_detector, load_network
from facecontrol.faces import draw_faces, face_caption
from facecontrol.evaluate import adherence
from facecontrol.generate import generate
from facecontrol.landmarks import draw_mask
from facecontrol.loss import cache_latents, controlnet_loss, controlnet_pipeline, draw_batch, load_base, new_controlnet
from facecontrol.memory import make_optimizer
from facecontrol.pocket import path
from facecontrol.train import training_steps, update_mean
from train import drawn, machine, published, table

class Recipe(NamedTuple):
    "What may bring control sooner"
    learning_rate:float=2e-3
    timestep_sampling:str='cubic'
    proportion_empty_prompts:float=0.
    snr_gamma:float|None=None
    ema_decay:float|None=None
    lr_warmup_steps:int=0
    random_flip:float=0.
    batches:tuple=((0, 32),) # (from which step, rows)
    open_reader:bool|None=None # None: as the base's size has it, see `new_controlnet`
    reward:float=0. # weight of `landmark_distance` in the last third of the steps

RECIPES = dict(
    cubic=Recipe(), uniform=Recipe(timestep_sampling='uniform'), logit_normal=Recipe(timestep_sampling='logit_normal'),
    min_snr=Recipe(snr_gamma=5.), min_snr_uniform=Recipe(timestep_sampling='uniform', snr_gamma=5.), dropout=Recipe(proportion_empty_prompts=.5),
    lr_5e4=Recipe(5e-4), lr_1e3=Recipe(1e-3), lr_4e3=Recipe(4e-3), warm_up=Recipe(4e-3, lr_warmup_steps=100), ema=Recipe(ema_decay=.99), flips=Recipe(random_flip=.5),
    shut_reader=Recipe(open_reader=False), batch_16=Recipe(batches=((0, 16),)), batch_64=Recipe(batches=((0, 64),)), batch_16_then_64=Recipe(batches=((0, 16), (200, 64))),
    reward=Recipe(reward=2.), published=Recipe(1e-5, 'uniform', batches=((0, 4),)))

LOUD = 2. # conditioning scale at which everybody is measured: the quickstart's run was 9.2 % off at 1 after 500 steps, and 6.3 % at 3

def measure(base, controlnet, landmarks, prompts, detect): # median NME on held-out masks
    size = base.unet.config.sample_size * 8
    images = generate(controlnet_pipeline(base, controlnet), prompts, [draw_mask(points, size) for points in landmarks], batch_size=16, controlnet_conditioning_scale=LOUD)
    return adherence(landmarks, images, detect)['nme_median']

def landmark_distance(base, network, batch, model_pred): # shares of the picture's width
    "How far landmarks lie apart in the picture that a guess at a late timestep leads to, and in the true one: the idea of ControlNet++"
    late = batch.timesteps < base.scheduler.config.num_train_timesteps // 2 # before, the guess is a blur
    if not late.any(): return torch.zeros(())
    alpha = base.scheduler.alphas_cumprod[batch.timesteps[late]][:, None, None, None]
    noisy = base.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)[late]
    guessed = (noisy - (1 - alpha).sqrt() * model_pred[late]) / alpha.sqrt()
    def found(latents): return network(base.vae.decode(latents / base.vae.config.scaling_factor).sample)[0]
    with torch.no_grad(): true = found(batch.latents[late])
    return (found(guessed) - true).norm(dim=-1).mean() / network.config['size']

def loss_with(base, controlnet, recipe, steps): # Batch -> scalar
    "The trainer's loss; and, in the last third, the reward"
    network, guesses, taken = load_network(path('landmarks')).requires_grad_(False), [], 0
    if recipe.reward: base.unet.register_forward_hook(lambda unet, given, out: guesses.append(out[0]))
    def loss_of(batch):
        nonlocal taken
        guesses.clear()
        loss, taken = controlnet_loss(base.unet, controlnet, base.scheduler, *batch, snr_gamma=recipe.snr_gamma), taken + 1
        return loss + recipe.reward * landmark_distance(base, network, batch, guesses[0]) if recipe.reward and taken > steps * 2 // 3 else loss
    return loss_of

def follow(recipe, rows, held_out, detect, seed, steps, every): # [(step, seconds, error)]
    base = load_base('pocket')
    begun, controlnet = time.perf_counter(), new_controlnet(base.unet, seed, recipe.open_reader)
    size = base.unet.config.sample_size * 8
    cache = cache_latents(base, rows, size, flip=recipe.random_flip > 0)
    mean = new_controlnet(base.unet, seed, recipe.open_reader) if recipe.ema_decay else None
    for model in (controlnet, base.unet): model.to(memory_format=torch.channels_last)
    def draw(step):
        batch_size = max((first, rows) for first, rows in recipe.batches if first <= step)[1]
        return draw_batch(cache, seed, step, batch_size, num_train_timesteps=base.scheduler.config.num_train_timesteps, timestep_sampling=recipe.timestep_sampling,
            proportion_empty_prompts=recipe.proportion_empty_prompts, random_flip=recipe.random_flip)
    def rate(step): return recipe.learning_rate * min(1., (step + 1) / max(1, recipe.lr_warmup_steps))
    stepping = training_steps(Accelerator(mixed_precision='no'), controlnet, make_optimizer(controlnet.parameters()), rate,
        loss_with(base, controlnet, recipe, steps), map(draw, range(steps)), range(steps), seed)
    seconds, curve = 0., []
    for step, _ in enumerate(stepping, 1):
        if mean: update_mean(mean, controlnet, recipe.ema_decay, step)
        if step % every: continue
        seconds += time.perf_counter() - begun
        curve.append((step, seconds, measure(base, mean or controlnet, *held_out, detect)))
        begun = time.perf_counter()
    return curve

def follow_script(script_path, learning_rate, batch, rows, held_out, detect, seed, steps, every):
    base = load_base('pocket')
    size = base.unet.config.sample_size * 8
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        new_controlnet(base.unet, seed, open_reader=False).save_pretrained(work/'start')
        done = script.run_script(script_path, ['--pretrained_model_name_or_path', path('sd'), '--dataset_name', published(rows, work/'dataset'), '--controlnet_model_name_or_path', work/'start',
            '--conditioning_image_column', 'spiga_seg', '--caption_column', 'image_caption', '--resolution', size, '--learning_rate', learning_rate, '--max_train_steps', steps,
            '--train_batch_size', batch, '--seed', seed, '--checkpointing_steps', every, '--output_dir', work/'out'])
        pace = float(np.median(done.seconds))     # without what saving takes
        return [(step, pace * step, measure(base, ControlNetModel.from_pretrained(work/f'out/checkpoint-{step}/controlnet'), *held_out, detect)) for step in range(every, steps + 1, every)]

def reached(curve, goal=.08): # seconds and step at which the error was first that small
    return next(((seconds, step) for step, seconds, error in curve if error <= goal), (np.inf, np.inf))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--script')
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--every', type=int, default=50)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--rows', type=int, default=2000)
    parser.add_argument('--masks', type=int, default=64)
    parser.add_argument('--only', nargs='+', choices=list(RECIPES), default=['cubic', 'uniform', 'published'])
    parser.add_argument('--out', type=Path)
    given = parser.parse_args()
    disable_progress_bar()
    size = load_base('pocket').unet.config.sample_size * 8
    rows, kept = drawn(given.rows, size), draw_faces(range(60_000, 60_000 + given.masks), size=size)
    held_out, detect = (np.stack(kept['visible']), [face_caption(face) for face in kept['faces']]), load_detector('pocket', device='cpu')
    ways = {name: lambda seed, recipe=RECIPES[name]: follow(recipe, rows, held_out, detect, seed, given.steps, given.every) for name in given.only}
    if given.script:
        for rate, batch in ((1e-5, 4), (5e-4, 32), (2e-3, 32), (4e-3, 32)):
            ways[f'the script, {rate:g} x {batch}'] = lambda seed, rate=rate, batch=batch: follow_script(given.script, rate, batch, rows, held_out, detect, seed, given.steps, given.every)
    print(machine())
    curves = {}
    for seed in range(given.seeds):              # in turns, so that a busy hour does not fall on one recipe alone
        for name, way in ways.items():
            curves.setdefault(name, []).append(way(seed))
            if given.out: given.out.write_text(json.dumps(curves, indent=1))
            print(f'{name}, seed {seed}: ' + ', '.join(f'{step} {error:.1%}' for step, _, error in curves[name][-1]), flush=True)
    def seconds_of(some): return float(np.median([reached(curve)[0] for curve in some]))
    def written(figure, unit): return f'{figure:.0f}{unit}' if np.isfinite(figure) else 'not reached'
    lines = []
    for name, some in sorted(curves.items(), key=lambda item: seconds_of(item[1])):
        steps, ends = float(np.median([reached(curve)[1] for curve in some])), [curve[-1][2] for curve in some]
        lines.append([name, written(seconds_of(some), ' s'), written(steps, ''), f'{np.median(ends):.1%}', f'{min(ends):.1%} to {max(ends):.1%}'])
    print(f'median NME of {given.masks} held-out masks, {given.rows} faces, {given.steps} steps, medians of {given.seeds} seeds')
    table(['', 'to 8 %', 'steps', 'at the end', 'of the seeds'], *lines)
