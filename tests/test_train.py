"What the training notebook cannot hold: other bases, the script's own flags and numbers, killed and damaged checkpoints, a second process"
import json, os, pickle, subprocess, sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
import numpy as np
import pytest
import torch
from accelerate.utils import LoggerType
from datasets import Dataset
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image
from safetensors.torch import load_file
from facecontrol import train
from facecontrol.checkpoint import latest_checkpoint, load_checkpoint
from facecontrol.loss import cache_latents, controlnet_loss, encode_prompts, gather, load_base, new_controlnet, rows_at
from facecontrol.memory import LADDER, make_optimizer
from facecontrol.publish import publish
from facecontrol.store import lock, verify
from facecontrol.train import parse_command, train_controlnet
from script import apart, ours, reference, reference_xl, run_script
from tiny import tiny_base, tiny_tokenizer, tiny_xl

root = Path(__file__).resolve().parents[1]
environment = os.environ | {'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'PYTHONPATH': str(root)}
quiet = dict(train_batch_size=4, learning_rate=1e-3, report_to='none')


def noise_rows(n): # pictures of noise in the published columns
    rng = np.random.default_rng(0)
    def noise(): return Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    return [dict(image=noise(), spiga_seg=noise(), image_caption=f'face {n}', row=n) for n in range(n)]

@pytest.fixture(scope='module')
def faces(tmp_path_factory): # 10 rows; 3 more are kept back
    folder, rows = tmp_path_factory.mktemp('faces'), noise_rows(13)
    (folder/'data').mkdir()
    for split, some in (('train', rows[:10]), ('test', rows[10:])): Dataset.from_list(some).to_parquet(folder/f'data/{split}-00000-of-00001.parquet')
    return folder

@pytest.fixture(scope='module')
def base(tmp_path_factory): return tiny_base(tmp_path_factory.mktemp('base'))

def weights(run): return load_file(Path(run)/'diffusion_pytorch_model.safetensors')

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


FLAGS = '''cache_dir=x controlnet_model_name_or_path=x revision=x variant=fp16 tokenizer_name=x output_dir=x seed=1 resolution=512 train_batch_size=4 num_train_epochs=1
    max_train_steps=9 checkpointing_steps=500 checkpoints_total_limit=2 resume_from_checkpoint=latest gradient_accumulation_steps=2 gradient_checkpointing
    learning_rate=5e-6 scale_lr lr_scheduler=polynomial lr_warmup_steps=500 lr_num_cycles=1 lr_power=1.0 use_8bit_adam dataloader_num_workers=8 adam_beta1=.9
    adam_beta2=.999 adam_weight_decay=1e-2 adam_epsilon=1e-8 max_grad_norm=1 push_to_hub hub_token=hf_secret hub_model_id=x logging_dir=logs allow_tf32 report_to=all
    mixed_precision=fp16 enable_xformers_memory_efficient_attention set_grads_to_none dataset_name=x dataset_config_name=x train_data_dir=x image_column=image
    conditioning_image_column=c caption_column=text max_train_samples=9 proportion_empty_prompts=.5 validation_prompt=x validation_image=x
    num_validation_images=4 validation_steps=100 tracker_project_name=x'''.split()

def test_every_flag_of_the_script_is_taken(capsys):
    given = parse_command(['--pretrained_model_name_or_path=x', '--stop_when_worse=3', *(f'--{flag}' for flag in FLAGS)])   # that one is `facecontrol train`'s own
    out = capsys.readouterr().out
    said = [line.split(':')[0] for line in out.splitlines()]
    assert sorted(said) == sorted(f'--{name}' for name in [*train._INSTEAD, 'push_to_hub'])     # one line for each that means nothing here, or something else
    names = {flag.split('=')[0] for flag in FLAGS}
    assert not given.keys() & (train._INSTEAD.keys() | train._HUB) and 'hf_secret' not in out   # nor does a token go on from here
    assert names - set(train._INSTEAD) - set(train._HUB) <= given.keys() and given['use_8bit_adam'] is True and given['lr_power'] == 1.


def test_the_other_processes_are_silent(monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    parse_command(['--pretrained_model_name_or_path=x', '--push_to_hub', '--set_grads_to_none'])
    assert capsys.readouterr().out == ''

def test_flags_that_no_other_test_uses(tmp_path, faces, base, monkeypatch):
    new_controlnet(load_base(base).unet, seed=1).save_pretrained(tmp_path/'start')
    tiny_tokenizer(tmp_path/'letters').save_pretrained(tmp_path/'letters')
    for n in range(2): Image.new('RGB', (64, 64)).save(tmp_path/f'{n}.png')
    def run(out, *more): return train_controlnet(**parse_command(list(map(str, ['--pretrained_model_name_or_path', base, '--train_data_dir', faces, '--tokenizer_name', tmp_path/'letters',
        '--controlnet_model_name_or_path', tmp_path/'start', '--latents_dir', tmp_path/'latents', '--output_dir', tmp_path/out, '--train_batch_size', 4,
        '--max_train_steps', 1, '--report_to', 'none', *more]))))
    report = run('scaled', '--scale_lr', '--learning_rate', 1e-3, '--validation_steps', 1, '--validation_prompt', 'a face', '--validation_image', tmp_path/'0.png', tmp_path/'1.png',
        '--num_validation_images', 2)
    assert report['settings']['tokenizer_name'] == str(tmp_path/'letters') == str(load_base(base, str(tmp_path/'letters')).tokenizer.name_or_path)
    assert Image.open(tmp_path/'scaled/validation/step-000001.png').size == (4 * 64, 2 * 64)        # two masks, one prompt for both, two pictures of each
    def encode(*_): raise AssertionError('all of it is in latents_dir')
    for name in ('_moments', '_embeds'): monkeypatch.setattr(f'facecontrol.loss.{name}', encode)
    run('plain', '--learning_rate', 4e-3)
    assert same(weights(tmp_path/'scaled'), weights(tmp_path/'plain'))      # the learning rate was that of four rows
    name, began = 'controlnet_cond_embedding.conv_in.weight', ControlNetModel.from_pretrained(tmp_path/'start').state_dict()
    moved = (weights(tmp_path/'plain')[name] - began[name]).abs().max()
    assert moved < .01 < (new_controlnet(load_base(base).unet).state_dict()[name] - began[name]).abs().max()    # it went on from that one, not from another

def test_no_home_directory_is_needed(tmp_path, faces, base):
    bare = {name: value for name, value in environment.items() if not name.startswith(('HF_', 'XDG_'))} | dict(HOME='/dev/null')
    command = [sys.executable, '-m', 'facecontrol.train', '--pretrained_model_name_or_path', base, '--dataset_name', faces, '--output_dir', tmp_path/'run',
        '--max_train_steps', 1, '--train_batch_size', 2, '--report_to', 'none']
    done = subprocess.run(list(map(str, command)), cwd=root, env=bare, capture_output=True, text=True)
    assert done.returncode == 0 and '1 steps, final loss' in done.stdout, done.stderr[-2000:]


@pytest.fixture
def tracker(monkeypatch): # a package of that name as far as accelerate can tell; hands back what it is told
    def installed(name):
        told = []
        package = ModuleType(name)
        package.__spec__ = ModuleSpec(name, None)
        package.init = lambda project: SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append('finished'))
        package.config = SimpleNamespace(update=lambda values, allow_val_change: told.append(values))
        package.Image = lambda image: image
        monkeypatch.setitem(sys.modules, name, package)
        monkeypatch.setattr('accelerate.tracking._available_trackers', [LoggerType(name)])
        return told
    return installed

@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_a_tracker_that_is_asked_for_is_told(tmp_path, faces, base, tracker, name):
    told = tracker(name)
    Image.new('RGB', (64, 64)).save(tmp_path/'mask.png')
    report = train_controlnet(base, faces, tmp_path/'run', max_train_steps=4, validation_steps=2, validation_prompt=['a face'], validation_image=[tmp_path/'mask.png'],
        **quiet | dict(report_to=name))
    assert told[0]['learning_rate'] == '0.001' and told[-1] == 'finished'
    figures = {step: values for step, values in told[1:-1] if 'loss' in values}
    assert figures.keys() == {2, 4} and np.isclose(figures[4]['loss'], np.mean(report['losses'][2:]))
    assert figures[4]['held_out_loss'] == report['held_out']['4'] and figures[4]['lr'] == 1e-3
    pictures = {step: values['validation'] for step, values in told[1:-1] if 'validation' in values}
    assert {step: [picture.size for picture in some] for step, some in pictures.items()} == ({2: [(64, 128)], 4: [(64, 128)]} if name == 'wandb' else {})

def test_tensorboard_is_told_by_default(tmp_path, faces, base):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    report = train_controlnet(base, faces, tmp_path/'run', max_train_steps=2, validation_steps=2, train_batch_size=4, learning_rate=1e-3)
    folder, = {path.parent for path in (tmp_path/'run/logs/train_controlnet').glob('events*')}
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    loss, = events.Scalars('loss')
    assert loss.step == 2 and np.isclose(loss.value, np.mean(report['losses']))

def test_a_tracker_that_is_missing(tmp_path, faces, base, monkeypatch, capsys):
    monkeypatch.setattr('accelerate.tracking._available_trackers', [])
    for name in ('wandb', 'trackio'):
        with pytest.raises(ValueError, match=f'report_to {name} needs a package that is not installed: pip install {name}'):
            train_controlnet(base, faces, tmp_path/'run', max_train_steps=1, **quiet | dict(report_to=name))
    assert not (tmp_path/'run').exists()
    train_controlnet(base, faces, tmp_path/'run', max_train_steps=1, train_batch_size=4, learning_rate=1e-3)      # nobody asked for tensorboard
    assert capsys.readouterr().out.count('it is not installed; losses go to train.json') == 1


architectures = pytest.mark.parametrize('prediction_type, like', [('epsilon', 'sd15'), ('v_prediction', 'sd15'), ('epsilon', 'sd21'), ('v_prediction', 'sd21')])

@architectures
def test_losses_are_those_of_the_reference(tmp_path, prediction_type, like):
    folder, rows = tiny_base(tmp_path/'base', prediction_type, like), noise_rows(12)
    new_controlnet(load_base(folder).unet).save_pretrained(tmp_path/'start')
    theirs = reference(folder, rows, tmp_path/'start', steps=30, batch_size=4, learning_rate=1e-3, resolution=64)
    assert apart(ours(folder, rows, tmp_path/'start', theirs, 1e-3, 64, fused=False), theirs) == (0, 0) and len(set(theirs.losses)) == 30
    if like == 'sd21': return   # at this learning rate the deeper network of random weights is chaotic: one rounding elsewhere, and 30 steps later losses differ in the second digit
    loss, weight = apart(ours(folder, rows, tmp_path/'start', theirs, 1e-3, 64), theirs)
    assert loss <= 1e-6 and weight <= 1e-3      # the trainer's own AdamW is fused and rounds elsewhere: where a gradient is little but rounding, that is a piece of one step of 1e-3

def test_an_xls_loss_is_that_of_the_reference(tmp_path):
    folder, rows, rng = tiny_xl(tmp_path/'base'), noise_rows(4), torch.Generator().manual_seed(0)
    base = load_base(folder)
    controlnet = new_controlnet(base.unet)
    for exit in controlnet.controlnet_down_blocks.parameters(): torch.nn.init.normal_(exit, std=.1, generator=rng)     # or it would say nothing
    controlnet.save_pretrained(tmp_path/'start')
    cache = cache_latents(base, rows, 64)
    spread, noise = (torch.randn((4, 4, 8, 8), generator=rng) for _ in range(2))
    batch = gather(cache, range(4), [some[0] for some in cache.prompts], [0] * 4, spread, noise, torch.tensor([3, 300, 600, 990]))
    with torch.no_grad():
        theirs = reference_xl(folder, rows, tmp_path/'start', spread, noise, batch.timesteps, 64)
        assert abs(controlnet_loss(base.unet, controlnet, base.scheduler, *batch).item() - theirs) <= 1e-6
        silent = controlnet_loss(base.unet, new_controlnet(base.unet), base.scheduler, *batch).item()
        other_size = batch._replace(added_cond_kwargs=batch.added_cond_kwargs | dict(time_ids=batch.added_cond_kwargs['time_ids'] * 2))
        assert abs(silent - theirs) > 1e-5 < abs(controlnet_loss(base.unet, controlnet, base.scheduler, *other_size).item() - theirs)   # what is compared can be told apart

@pytest.mark.skipif('DIFFUSERS_SCRIPT' not in os.environ, reason="set DIFFUSERS_SCRIPT to the path of diffusers' train_controlnet.py")
def test_losses_are_those_of_the_script(tmp_path, faces, base):
    new_controlnet(load_base(base).unet).save_pretrained(tmp_path/'start')
    theirs = run_script(os.environ['DIFFUSERS_SCRIPT'], ['--pretrained_model_name_or_path', base, '--dataset_name', faces, '--controlnet_model_name_or_path', tmp_path/'start',
        '--output_dir', tmp_path/'script', '--conditioning_image_column', 'spiga_seg', '--caption_column', 'image_caption', '--resolution', 64, '--learning_rate', 1e-3,
        '--max_train_steps', 30, '--train_batch_size', 5, '--seed', 0])
    assert len(theirs.losses) == 30 and apart(ours(base, noise_rows(10), tmp_path/'start', theirs, 1e-3, 64, fused=False), theirs) == (0, 0)


@architectures
def test_stock_pipeline_loads_what_was_trained(tmp_path, faces, prediction_type, like):
    base = tiny_base(tmp_path/'base', prediction_type, like)
    train_controlnet(base, faces, tmp_path/'run', max_train_steps=2, **quiet)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=ControlNetModel.from_pretrained(tmp_path/'run'), safety_checker=None)
    assert pipeline('a face', image=Image.new('RGB', (64, 64)), num_inference_steps=2).images[0].size == (64, 64)

def test_an_xl_goes_through_the_same_loop(tmp_path, faces):
    base = tiny_xl(tmp_path/'base')
    Image.new('RGB', (64, 64)).save(tmp_path/'mask.png')
    report = train_controlnet(base, faces, tmp_path/'run', max_train_steps=3, validation_steps=3, validation_prompt=['a face'], validation_image=[tmp_path/'mask.png'], **quiet)
    assert np.isfinite(report['losses']).all() and (tmp_path/'run/validation/step-000003.png').exists()
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(base, controlnet=ControlNetModel.from_pretrained(tmp_path/'run'))
    assert pipeline('a face', image=Image.new('RGB', (64, 64)), num_inference_steps=2).images[0].size == (64, 64)
    theirs = pipeline.encode_prompt('a face', device='cpu', num_images_per_prompt=1, do_classifier_free_guidance=False)
    mine = encode_prompts(load_base(base), ['a face'])
    assert torch.allclose(mine[0], theirs[0], atol=1e-6) and torch.allclose(mine[1], theirs[2], atol=1e-6)


@pytest.mark.parametrize('memory', LADDER)
def test_a_small_card_resumes_to_the_bit(tmp_path, faces, base, memory):
    call = dict(memory=memory, checkpointing_steps=2, **quiet)
    straight = train_controlnet(base, faces, tmp_path/'straight', max_train_steps=4, **call)
    train_controlnet(base, faces, tmp_path/'stopped', max_train_steps=2, **call)
    resumed = train_controlnet(base, faces, tmp_path/'stopped', max_train_steps=4, resume_from_checkpoint='latest', **call)
    assert same(weights(tmp_path/'straight'), weights(tmp_path/'stopped')) and resumed['losses'] == straight['losses']
    assert same(*(load_file(tmp_path/run/'checkpoint-4/optimizer.safetensors') for run in ('straight', 'stopped')))
    plain = train_controlnet(base, faces, tmp_path/'plain', max_train_steps=4, **quiet)
    assert np.allclose(straight['losses'], plain['losses'], rtol=1e-5 if memory == 'equal' else .05)


@pytest.fixture
def seen(monkeypatch): # of every batch that is drawn: the step, where in its batch, and which rows
    seen, draw_batch = [], train.draw_batch
    def noted(cache, seed, step, batch_size, part, *args):
        seen.append((step, part.start, rows_at(seed, step, batch_size, len(cache.prompts))[part].tolist()))
        return draw_batch(cache, seed, step, batch_size, part, *args)
    monkeypatch.setattr(train, 'draw_batch', noted)
    return seen

def test_stopped_after_steps_1_5_and_15_it_goes_on_to_the_bit(tmp_path, faces, base, seen):
    call = dict(proportion_empty_prompts=.5, random_flip=.5, ema_decay=.9, **quiet)
    straight = train_controlnet(base, faces, tmp_path/'straight', max_train_steps=20, checkpointing_steps=5, **call)
    wanted = sorted(seen)
    seen.clear()
    for steps in (1, 5, 15, 20):        # each stop is a process that ends; the next one has nothing but the folder
        stopped = train_controlnet(base, faces, tmp_path/'stopped', max_train_steps=steps, checkpointing_steps=1 if steps == 1 else 5, resume_from_checkpoint='latest', **call)
        assert stopped['losses'] == straight['losses'][:steps]
    for steps in (5, 15, 20):
        for file in ('optimizer.safetensors', 'controlnet/diffusion_pytorch_model.safetensors', 'controlnet_ema/diffusion_pytorch_model.safetensors'):
            assert same(*(load_file(tmp_path/f'{run}/checkpoint-{steps}/{file}') for run in ('straight', 'stopped'))), f'{file} after {steps} steps'
    assert same(weights(tmp_path/'straight'), weights(tmp_path/'stopped')) and sorted(seen) == wanted      # no row more, none less
    assert len(set(straight['losses'])) == 20

@pytest.mark.parametrize('wrong, said', [
    (dict(tokenizer_name='no/such/folder'), 'tokenizer_name must be a folder or Hub id with a tokenizer, got no/such/folder: '),
    (dict(controlnet_model_name_or_path='no/such/folder'), 'controlnet_model_name_or_path must be a ControlNet, got no/such/folder: '),
    (dict(controlnet_model_name_or_path='POCKET'), "its in_channels is 16, the base's 4"),
    (dict(output_dir='FILE'), 'output_dir must be a folder that can be written, got '), (dict(output_dir='FILE/run'), 'output_dir must be a folder that can be written, got '),
    (dict(resolution=0), 'resolution must be at least 1, got 0'), (dict(num_train_epochs=0), 'num_train_epochs must be at least 1, got 0'),
    (dict(num_train_epochs=-1), 'num_train_epochs must be at least 1, got -1'), (dict(max_train_samples=0), 'max_train_samples must be at least 1, got 0'),
    (dict(max_grad_norm=0), 'max_grad_norm must be above 0, got 0'), (dict(snr_gamma=0.), 'snr_gamma must be above 0, got 0.0'),
    (dict(ema_decay=1.), 'ema_decay must lie between 0 and 1, both excluded, got 1.0'), (dict(held_out_samples=-1), 'held_out_samples must not be negative, got -1')])
def test_what_would_fail_later_is_refused_before_anything_is_computed(tmp_path, faces, base, monkeypatch, wrong, said):
    monkeypatch.setattr(train, '_cached', lambda *args: pytest.fail('it went to work'))
    (tmp_path/'file').write_text('')
    if 'POCKET' in wrong.values():
        new_controlnet(load_base('pocket').unet).save_pretrained(tmp_path/'pocket')
        wrong = dict(controlnet_model_name_or_path=tmp_path/'pocket')
    if 'output_dir' in wrong: wrong = dict(output_dir=tmp_path/wrong['output_dir'].lower())
    with pytest.raises(ValueError) as error: train_controlnet(base, faces, **dict(output_dir=tmp_path/'run') | quiet | wrong)
    assert said in str(error.value)

def test_a_table_that_cannot_be_read(tmp_path, base):
    (tmp_path/'train.parquet').write_bytes(b'PAR1 this is none PAR1')
    with pytest.raises(ValueError, match='dataset_name must be a folder with parquet files or a Hub id'): train_controlnet(base, tmp_path, tmp_path/'run', **quiet)

def test_ways_of_many_processes_that_it_does_not_go(tmp_path, faces, base, monkeypatch):
    monkeypatch.setattr(train.Accelerator, 'distributed_type', train.DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match='each hold the whole ControlNet, got DEEPSPEED'): train_controlnet(base, faces, tmp_path/'run', **quiet)

def test_two_at_a_time_do_not_write_one_folder(tmp_path, faces, base):
    with lock(tmp_path/'run/training'), pytest.raises(ValueError, match='is being written by another process'): train_controlnet(base, faces, tmp_path/'run', **quiet)

def test_a_run_without_a_checkpoint_yet_starts_anew(tmp_path, faces, base):
    for made in ('tb/events', 'run/latents/shard', 'run/validation/step-000002.png', 'run/tb/events'):
        (tmp_path/made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/made).write_text('')
    settings = dict(max_train_steps=1, resume_from_checkpoint='latest', latents_dir=tmp_path/'run/latents', **quiet)
    with pytest.raises(ValueError, match='which holds tb: no good checkpoint is among it'): train_controlnet(base, faces, tmp_path/'run', **settings)
    train_controlnet(base, faces, tmp_path/'run', logging_dir='tb', **settings)

def test_a_damaged_checkpoint_is_passed_over_and_then_replaced(tmp_path, faces, base):
    settings = dict(checkpointing_steps=1, validation_steps=2, **quiet)
    whole = train_controlnet(base, faces, tmp_path/'run', max_train_steps=2, **settings)
    (tmp_path/'run/checkpoint-2/manifest.json').unlink()
    again = train_controlnet(base, faces, tmp_path/'run', max_train_steps=3, resume_from_checkpoint='latest', **settings)
    assert again['losses'][:2] == whole['losses'] and len(again['losses']) == 3
    assert latest_checkpoint(tmp_path/'run').name == 'checkpoint-3' and verify(tmp_path/'run/checkpoint-2')

def test_an_earlier_checkpoint_becomes_the_result(tmp_path, faces, base):
    Image.new('RGB', (64, 64)).save(tmp_path/'mask.png')
    settings = dict(checkpointing_steps=1, validation_steps=2, validation_prompt=['a face'], validation_image=[tmp_path/'mask.png'], **quiet)
    three = train_controlnet(base, faces, tmp_path/'run', max_train_steps=3, **settings)
    assert three['held_out'].keys() == {'2', '3'}           # the last step is looked at, too
    assert (tmp_path/'run/validation.png').read_bytes() == (tmp_path/'run/validation/step-000003.png').read_bytes()
    with pytest.raises(ValueError, match='max_train_steps must be at least the 2 that checkpoint-2 has taken, got 1'):
        train_controlnet(base, faces, tmp_path/'run', max_train_steps=1, resume_from_checkpoint='checkpoint-2', **settings)
    two = train_controlnet(base, faces, tmp_path/'run', max_train_steps=2, resume_from_checkpoint='checkpoint-2', **settings)
    assert two['losses'] == three['losses'][:2]
    assert (tmp_path/'run/validation.png').read_bytes() == (tmp_path/'run/validation/step-000002.png').read_bytes()

def test_precision_is_put_back(tmp_path, faces, base):
    before = torch.get_float32_matmul_precision()
    train_controlnet(base, faces, tmp_path/'run', max_train_steps=1, allow_tf32=True, **quiet)
    assert torch.get_float32_matmul_precision() == before

def test_a_schedule_ends_where_diffusers_does(tmp_path, faces, base, monkeypatch):
    rates = []
    monkeypatch.setattr(train, 'training_steps', lambda accelerator, controlnet, optimizer, rate, *others, original=train.training_steps: rates.append(rate) or original(accelerator, controlnet, optimizer, rate, *others))
    train_controlnet(base, faces, tmp_path/'run', max_train_steps=2, lr_scheduler='polynomial', **quiet)
    assert np.allclose([rates[0](step) for step in range(4)], [1e-3, (1e-3 - 1e-7) / 2 + 1e-7, 1e-7, 1e-7], rtol=1e-6)

def test_a_run_that_is_told_to_stop_leaves_what_a_power_cut_leaves(tmp_path, faces, base):
    call, asked = dict(max_train_steps=6, checkpointing_steps=2, **quiet), []
    def stop(output_dir):
        asked.append(latest_checkpoint(output_dir).name)
        return len(asked) == 2
    never = train_controlnet(base, faces, tmp_path/'never', **call)
    train_controlnet(base, faces, tmp_path/'ended', stop=stop, **call)
    assert asked == ['checkpoint-2', 'checkpoint-4'] and json.loads((tmp_path/'ended/train.json').read_text())['steps'] == 4
    further = train_controlnet(base, faces, tmp_path/'ended', resume_from_checkpoint='latest', **call)
    assert further['losses'] == never['losses'] and same(weights(tmp_path/'ended'), weights(tmp_path/'never'))
    assert same(*(load_file(tmp_path/run/'checkpoint-6/optimizer.safetensors') for run in ('ended', 'never')))

def test_stopped_anywhere_it_goes_on_to_the_bit(tmp_path, faces, base, seen, monkeypatch):
    call = dict(max_train_steps=8, checkpointing_steps=1, checkpoints_total_limit=2, gradient_accumulation_steps=2, proportion_empty_prompts=.5, random_flip=.5,
        ema_decay=.9, lr_scheduler='cosine', **quiet | dict(train_batch_size=2))
    straight = train_controlnet(base, faces, tmp_path/'straight', **call)
    wanted, taken = sorted(seen), []
    seen.clear()
    def loss_of(*args, **kwargs):
        if len(taken) == stop:
            taken.append('power')
            raise KeyboardInterrupt
        taken.append('part')
        return controlnet_loss(*args, **kwargs)
    controlnet_loss = train.controlnet_loss
    monkeypatch.setattr(train, 'controlnet_loss', loss_of)
    cut = []
    for stop in (1, 4, 5, None):        # after how many parts the power fails: in the middle of step 0; before step 2 (rows 8 to 11, of 10 an epoch); in the middle of step 4
        taken.clear()
        try: report = train_controlnet(base, faces, tmp_path/'stopped', resume_from_checkpoint='latest', **call)
        except KeyboardInterrupt: cut.append(stop)
    assert cut == [1, 4, 5]
    assert report['losses'] == straight['losses'] and same(weights(tmp_path/'straight'), weights(tmp_path/'stopped'))
    assert same(*(load_file(tmp_path/run/'checkpoint-8/optimizer.safetensors') for run in ('straight', 'stopped')))
    assert sorted(set(map(repr, seen))) == sorted(map(repr, wanted))            # the same rows at the same steps, and no others
    assert [path.name for path in sorted((tmp_path/'stopped').glob('checkpoint-*'))] == ['checkpoint-7', 'checkpoint-8']


@pytest.fixture(scope='module')
def run(tmp_path_factory, faces, base): # one with two checkpoints
    out = tmp_path_factory.mktemp('run')/'out'
    train_controlnet(base, faces, out, max_train_steps=2, checkpointing_steps=1, **quiet)
    return out

def test_a_changed_byte_is_found_and_named(run, capsys):
    damages = dict(flipped=lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        cut=lambda path: path.write_bytes(path.read_bytes()[:-2]), deleted=lambda path: path.unlink())
    newest = run/'checkpoint-2'
    for path in sorted(p for p in newest.rglob('*') if p.is_file()):
        whole = path.read_bytes()
        for name, damage in damages.items():
            damage(path)
            assert latest_checkpoint(run).name == 'checkpoint-1', f'{path.name} {name}'
            assert path.name in capsys.readouterr().out, f'{path.name} {name}'
            path.write_bytes(whole)
    assert latest_checkpoint(run) == newest

def test_a_pickle_in_a_checkpoint_does_not_run(run, base, tmp_path):
    class Bomb:
        def __reduce__(self): return Path.touch, (tmp_path/'it-ran',)
    folder, controlnet = run/'checkpoint-2', new_controlnet(load_base(base).unet)
    for name in ('pytorch_model.bin', 'optimizer.bin', 'random_states_0.pkl', 'controlnet/diffusion_pytorch_model.bin'): (folder/name).write_bytes(pickle.dumps(Bomb()))
    load_checkpoint(folder, controlnet, make_optimizer(controlnet.parameters()))
    kept = (folder/'controlnet/diffusion_pytorch_model.safetensors').rename(tmp_path/'kept')
    with pytest.raises(ValueError, match='is missing'): load_checkpoint(folder, controlnet, make_optimizer(controlnet.parameters()))
    with pytest.raises(OSError): ControlNetModel.from_pretrained(folder/'controlnet', use_safetensors=True)
    kept.rename(folder/'controlnet/diffusion_pytorch_model.safetensors')
    assert not (tmp_path/'it-ran').exists()

def test_the_power_fails_while_it_saves(tmp_path, base):
    script = '''
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from facecontrol.checkpoint import latest_checkpoint, save_checkpoint
from facecontrol.loss import load_base, new_controlnet
from facecontrol.memory import begin_step, end_step, make_optimizer
controlnet = new_controlnet(load_base(sys.argv[1]).unet)
optimizer = make_optimizer(controlnet.parameters())
for p in controlnet.parameters(): p.grad = torch.ones_like(p)
begin_step(optimizer, 1e-3, seed=0)
end_step(optimizer, torch.tensor(True))
def save(step): save_checkpoint(f'checkpoint-{step}', controlnet, optimizer, dict(losses=[.5] * step), {})
save(1)
found, touches = [], {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'}
for kill in range(0, 400, 2):
    child = os.fork()
    if child == 0:
        left = [kill]
        def hook(event, args):
            if event in touches:
                left[0] -= 1
                if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        save(2)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found.append((killed, latest_checkpoint('.').name))
    if not killed: break
print(json.dumps(found))
'''
    done = subprocess.run([sys.executable, '-c', script, base], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(killed for killed, _ in found) >= 20 and found[-1] == [False, 'checkpoint-2']
    assert {name for _, name in found} == {'checkpoint-1', 'checkpoint-2'}      # never none, never half a one
    verify(tmp_path/'checkpoint-2')


def test_a_finished_run_lists_what_goes_to_the_hub_and_stays_here_without_a_licence(run):
    with pytest.raises(ValueError, match='must name a licence'): publish(run, 'somebody/model', dry_run=True)      # this base and these faces have none
    assert verify(run)['files'].keys() == {'README.md', 'config.json', 'curves.png', 'diffusion_pytorch_model.safetensors', 'train.json'}

def test_two_processes_agree_with_one_also_when_they_were_stopped(tmp_path, faces, base):
    def run(processes, batch, steps=3): # a step is 4 rows
        out = tmp_path/f'run-{processes}'
        launch = ['accelerate.commands.launch', '--cpu', '--num_processes', 1] if processes == 1 else ['torch.distributed.run', '--nproc_per_node', processes]   # on a CPU, the first starts several only with MPI
        command = [sys.executable, '-m', *launch, '-m', 'facecontrol.train', '--pretrained_model_name_or_path', base, '--dataset_name', faces, '--output_dir', out, '--train_batch_size', batch,
            '--max_train_steps', steps, '--checkpointing_steps', 2, '--resume_from_checkpoint', 'latest', '--learning_rate', 1e-3, '--proportion_empty_prompts', .5,
            '--report_to', 'none', '--set_grads_to_none',
            '--adam_epsilon', 1e-5]     # or the sign of a gradient that is nothing but rounding would move a weight by a whole learning rate
        done = subprocess.run(list(map(str, command)), cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert f'{steps} steps, final loss' in done.stdout and done.stdout.count('--set_grads_to_none') == 1
        return out
    one = run(1, 4)
    run(2, 2, steps=2)
    two = run(2, 2)
    assert np.allclose(*(json.loads((out/'train.json').read_text())['losses'] for out in (one, two)), rtol=1e-5)
    for name, weight in weights(one).items(): assert np.allclose(weight, weights(two)[name], atol=1e-5), name

@pytest.mark.skipif('SLOW' not in os.environ, reason='two minutes of a C++ compiler: set SLOW')
def test_compiled_blocks_compute_the_same(tmp_path, faces, base):
    plain, compiled = (train_controlnet(base, faces, tmp_path/str(compile), max_train_steps=2, held_out_samples=0, torch_compile=compile, **quiet) for compile in (False, True))
    assert np.allclose(plain['losses'], compiled['losses'], atol=1e-5)
