"""Time to control: how long until faces follow the mask, for one recipe after another, each with several seeds.

    python benchmarks/control.py [--script PATH] [--only cubic uniform …] [--seeds 0 1 2] [--steps 250] [--out nbs/results/recipes.json]

What the file holds is not run again, so a race may be stopped and gone on with: all of it takes some ten hours. As many runs as there are cores go on side by side,
each on one core. The clock is the processor time of a run's own process, so that what else the machine does is not counted: it runs while latents are cached
and while steps are taken, and stands still while pictures are drawn and measured.
With --script, diffusers' train_controlnet.py runs on the same faces, at the published learning rate and batch and at those of a small sweep. Its time is
the median of its steps; reading its models, preparing its data and saving are not counted, so that the comparison errs in its favour.
The recipe `reward` is taught by the detector that also measures: what it gains may be the detector's weakness, and not control.
"""
import argparse, copy, json, multiprocessing, os, sys, tempfile, time, traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset
from diffusers import ControlNetModel
from diffusers.utils.logging import disable_progress_bar
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]/'tests')]
import script
from facecontrol.detect import load_detector, load_network
from facecontrol.evaluate import adherence, drawn_rows, kept_share, load_clip, probe_prompts, recognised
from facecontrol.generate import generate
from facecontrol.loss import cache_latents, controlnet_loss, controlnet_pipeline, draw_batch, load_base, new_controlnet
from facecontrol.memory import Rung, make_optimizer
from facecontrol.pocket import path
from facecontrol.store import origin, write_json
from facecontrol.train import training_steps, update_mean
from train import drawn, machine, published, table

class Recipe(NamedTuple):
    "What may bring control sooner"
    learning_rate:float=2e-3
    timestep_sampling:str='cubic'
    proportion_empty_prompts:float=0.
    snr_gamma:float|None=None
    ema_decay:float|None=None # the averaged weights are measured beside the others
    lr_warmup_steps:int=0
    random_flip:float=0.
    batches:tuple=((0, 16),) # (from which step, rows)
    open_reader:bool|None=None # None: as the base's size has it, see `new_controlnet`
    reward:float=0. # weight of `landmark_distance` in the last third of the steps
    rung:Rung=Rung() # how small its numbers are; what is kept and what is computed again makes no difference to them

RECIPES = dict(
    cubic=Recipe(ema_decay=.99), uniform=Recipe(timestep_sampling='uniform'), logit_normal=Recipe(timestep_sampling='logit_normal'),
    min_snr=Recipe(timestep_sampling='uniform', snr_gamma=5.), dropout=Recipe(proportion_empty_prompts=.5), flips=Recipe(random_flip=.5),
    lr_1e3=Recipe(1e-3), lr_4e3=Recipe(4e-3), warm_up=Recipe(4e-3, lr_warmup_steps=100), shut_reader=Recipe(open_reader=False),
    batch_32=Recipe(batches=((0, 32),)), batch_8_then_32=Recipe(batches=((0, 8), (200, 32))), reward=Recipe(reward=2.),
    small=Recipe(rung=Rung(state_bits=8, frozen_bf16=True, trained_bf16=True)), published=Recipe(1e-5, 'uniform', batches=((0, 4),)))
SWEEP = [(1e-5, 4), (1e-3, 16), (2e-3, 16), (4e-3, 16)] # the script's learning rates and batches
FURTHER = dict(cubic=2, logit_normal=2) # run so many times as long as the other recipes: those that the script is held against

ROWS, MASKS, PROBES, SAMPLER = 800, 48, 5, 10 # faces trained on; of a look: masks, at the end also how often each concept and style, steps of the sampler
LOUD, GUIDANCE = 2., 1. # everybody is measured with a loud mask, and without exaggerating the prompt, which would take twice as long

def once(function): return lru_cache(maxsize=None)(function) # a process keeps what several runs need
@once
def judge(): return load_base('pocket'), load_detector('pocket', device='cpu'), load_clip()
@once
def masks(): return drawn_rows(MASKS)
@once
def cached(folder, flip): # and how long it took
    begun = time.process_time()
    return cache_latents(load_base('pocket'), load_dataset(folder)['train'], 128, flip=flip), time.process_time() - begun

def measure(controlnet): # median NME on held-out masks
    base, detect, _ = judge()
    images = generate(controlnet_pipeline(base, controlnet), [row['caption'] for row in masks()], [row['mask'] for row in masks()], steps=SAMPLER, guidance_scale=GUIDANCE,
        controlnet_conditioning_scale=LOUD, batch_size=16)
    return min(1., adherence(np.stack([row['landmarks'] for row in masks()]), images, detect)['nme_median'])

def remembered(controlnet): # which probes are recognised
    base, _, similarity = judge()
    probes, scale = probe_prompts(PROBES), LOUD if controlnet else 0.
    images = generate(controlnet_pipeline(base, controlnet or new_controlnet(base.unet)), [prompt for *_, prompt in probes], [row['mask'] for row in masks()[:len(probes)]],
        steps=SAMPLER, controlnet_conditioning_scale=scale, batch_size=16)
    return recognised(images, probes, similarity)
@once
def base_remembers(): return remembered(None)

def landmark_distance(base, network, batch, model_pred): # shares of the picture's width
    "How far landmarks lie apart in the picture that a guess at a late timestep leads to, and in the true one: the idea of ControlNet++"
    late = batch.timesteps < base.scheduler.config.num_train_timesteps // 2 # before, the guess is a blur
    if not late.any(): return torch.zeros(())
    alpha = base.scheduler.alphas_cumprod[batch.timesteps[late]][:, None, None, None]
    noisy = base.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)[late]
    guessed = alpha.sqrt() * noisy - (1 - alpha).sqrt() * model_pred[late] # the pocket base answers with a velocity
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

def follow(recipe, folder, seed, steps, every): # [(step, seconds, error, error of the averaged weights)], the ControlNet
    base, (cache, seconds) = load_base('pocket'), cached(folder, recipe.random_flip > 0)
    controlnet = new_controlnet(base.unet, seed, recipe.open_reader)
    mean = copy.deepcopy(controlnet) if recipe.ema_decay else None
    for model, half in ((controlnet, recipe.rung.trained_bf16), (base.unet, recipe.rung.frozen_bf16)):
        model.to(torch.bfloat16 if half else torch.float32, memory_format=torch.channels_last)
    def draw(step):
        batch_size = max((first, rows) for first, rows in recipe.batches if first <= step)[1]
        return draw_batch(cache, seed, step, batch_size, num_train_timesteps=base.scheduler.config.num_train_timesteps, timestep_sampling=recipe.timestep_sampling,
            proportion_empty_prompts=recipe.proportion_empty_prompts, random_flip=recipe.random_flip)
    def rate(step): return recipe.learning_rate * min(1., (step + 1) / max(1, recipe.lr_warmup_steps))
    stepping = training_steps(Accelerator(mixed_precision='no'), controlnet, make_optimizer(controlnet.parameters(), state_bits=recipe.rung.state_bits), rate,
        loss_with(base, controlnet, recipe, steps), map(draw, range(steps)), range(steps), seed)
    curve, begun = [], time.process_time()
    for step, _ in enumerate(stepping, 1):
        if mean: update_mean(mean, controlnet, recipe.ema_decay, step)
        if step % every: continue
        seconds += time.process_time() - begun
        curve.append((step, seconds, measure(copy.deepcopy(controlnet).float()), measure(mean) if mean else None))
        begun = time.process_time()
    return curve, controlnet.float()

def follow_script(script_path, learning_rate, batch, folder, seed, steps, every): # as `follow`
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        new_controlnet(load_base('pocket').unet, seed, open_reader=False).save_pretrained(work/'start')
        done = script.run_script(script_path, ['--pretrained_model_name_or_path', path('sd'), '--dataset_name', folder, '--controlnet_model_name_or_path', work/'start',
            '--conditioning_image_column', 'spiga_seg', '--caption_column', 'image_caption', '--resolution', 128, '--learning_rate', learning_rate, '--max_train_steps', steps,
            '--train_batch_size', batch, '--seed', seed, '--checkpointing_steps', every, '--output_dir', work/'out'], time.process_time)
        pace = float(np.median(done.seconds))     # without what saving takes
        trained = {step: ControlNetModel.from_pretrained(work/f'out/checkpoint-{step}/controlnet') for step in range(every, steps + 1, every)}
        return [(step, pace * step, measure(controlnet), None) for step, controlnet in trained.items()], trained[steps]

def one_run(name, way, arguments): # in a process of its own
    torch.set_num_threads(1)
    disable_progress_bar()
    curve, controlnet = (follow_script if way == 'script' else follow)(*arguments)
    kept, interval = kept_share(remembered(controlnet), base_remembers())
    curve = [(step, round(seconds, 1), *(error and round(error, 4) for error in errors)) for step, seconds, *errors in curve]
    return dict(name=name, seed=arguments[-3], curve=curve, retention=kept, retention_interval=interval, rows=ROWS, masks=MASKS, **origin())

def reached(curve, goal): # step and seconds at which the error was first that small, on straight lines between the looks
    if curve[0][2] <= goal: return curve[0][:2]
    for (a, since, before, _), (b, until, after, _) in zip(curve, curve[1:]):
        if after <= goal:
            share = (before - goal) / (before - after)
            return a + share * (b - a), since + share * (until - since)
    return np.inf, np.inf

def told(runs, goals=(.1, .08)): # everything, the quickest first
    lines = []
    groups = {name: [run for run in runs if run['name'] == name] for name in dict.fromkeys(run['name'] for run in runs)}
    def middle(values, unit=''): return f'{np.median(values):.0f}{unit}' if np.isfinite(np.median(values)) else '-'
    for name, some in sorted(groups.items(), key=lambda item: [np.median([reached(run['curve'], goal)[1] for run in item[1]]) for goal in reversed(goals)]):
        ends, last = [run['curve'][-1][2] for run in some], some[0]['curve'][-1]
        lines.append([name, str(len(some)), *(middle([reached(run['curve'], goal)[n] for run in some], unit) for goal in goals for n, unit in enumerate(('', ' s'))),
            f'{last[1] / last[0]:.2f}', f'{last[0]}', f'{np.mean(ends):.1%}', f'{min(ends):.1%} to {max(ends):.1%}', f"{np.mean([run['retention'] for run in some]):.0%}"])
    table(['', 'seeds', *(f'{what} to {goal:.0%}' for goal in goals for what in ('steps', 'time')), 's a step', 'last step', 'error there', 'of the seeds', 'retention'], *lines)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--script')
    parser.add_argument('--steps', type=int, default=250)
    parser.add_argument('--every', type=int, default=50, help='steps from look to look; twice that for the script')
    parser.add_argument('--script_steps', type=int, default=700)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    scripts = {f'the script, {rate:g} x {batch}': (rate, batch) for rate, batch in SWEEP}
    parser.add_argument('--only', nargs='*', choices=[*RECIPES, *scripts], default=[*scripts, *RECIPES])
    parser.add_argument('--out', type=Path, default=Path(__file__).parents[1]/'nbs/results/recipes.json')
    given = parser.parse_args()
    os.environ['ACCELERATE_USE_CPU'] = 'true' # the script is to train where ours does
    print(machine())
    def asked(name, seed, data): # of `one_run`
        if name in scripts: return name, 'script', (given.script, *scripts[name], data, seed, given.script_steps, 2 * given.every)
        return name, 'ours', (RECIPES[name], data, seed, given.steps * FURTHER.get(name, 1), given.every)
    runs = json.loads(given.out.read_text())['runs'] if given.out.exists() else []
    missing = [(name, seed) for seed in given.seeds for name in given.only if (given.script or name not in scripts) and (name, seed) not in {(run['name'], run['seed']) for run in runs}]
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context('spawn')) as pool:
        data = str(published(drawn(ROWS, 128), Path(work)/'dataset'))
        for run in as_completed([pool.submit(one_run, *asked(name, seed, data)) for name, seed in missing]):
            try: runs.append(run.result())
            except Exception: traceback.print_exc()       # the others go on
            else:
                write_json(given.out, dict(runs=runs))
                print(f"{runs[-1]['name']}, seed {runs[-1]['seed']}: " + ', '.join(f'{step} {error:.1%}' for step, _, error, _ in runs[-1]['curve']), flush=True)
    print(f'median NME of {MASKS} held-out masks at scale {LOUD:g}; {ROWS} faces; seconds of one core, medians of the seeds')
    told(runs)
