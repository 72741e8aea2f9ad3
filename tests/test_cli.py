"The commands, on faces that nobody here has drawn: a photo with points placed by hand, zipped in Microsoft's layout"
import json, shutil, zipfile
from pathlib import Path
import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data
from tiny import tiny_base
from typer.testing import CliRunner
from facecontrol.cli import _sentence, app, main
from facecontrol.facesynthetics import encode_png, format_landmarks, parse_landmarks
from facecontrol.landmarks import draw_mask
from facecontrol.store import write_json

here = Path(__file__).parent

def shell(*words):
    "Run a command in this process; hand back what it said"
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception: raise done.exception
    return done.output


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A zip of six photos: the astronaut at several sizes and places, always 512 px"
    work = tmp_path_factory.mktemp('cli')
    points = parse_landmarks((here/'astronaut_ldmks.txt').read_text())
    with zipfile.ZipFile(work/'photos.zip', 'w') as archive:
        for n, (left, top, side) in enumerate([(0, 0, 512), (120, 20, 200), (100, 0, 256), (130, 10, 190), (90, 0, 280), (60, 0, 340)]):
            image = Image.fromarray(data.astronaut()).resize((512, 512), box=(left, top, left + side, top + side))
            moved = (points - (left, top) + .5) * 512 / side - .5
            seg = Image.new('L', (512, 512))
            ImageDraw.Draw(seg).polygon([tuple(p) for p in moved[:17]], fill=1)   # skin; nobody here looks at the rest
            for name, content in (('.png', encode_png(image)), ('_seg.png', encode_png(seg)), ('_ldmks.txt', format_landmarks(moved))):
                archive.writestr(f'{n:06d}{name}', content)
    return work

def test_photos_become_a_controlnet_that_draws(work):
    said = shell('build', work/'photos.zip', work/'dataset', '--detector', 'dataset', '--captioner', 'none', '--size', '64')
    assert 'rows to train on' in said and '0 faces were not found, 0 frames were bad' in said
    base = tiny_base(work/'base')
    said = shell('train', '--pretrained_model_name_or_path', base, '--dataset_name', work/'dataset', '--output_dir', work/'controlnet',
                 '--max_train_steps', 2, '--train_batch_size', 2)
    assert '2 steps' in said
    points = work/'face_ldmks.txt'
    points.write_text(format_landmarks(parse_landmarks((here/'astronaut_ldmks.txt').read_text())))
    draw_mask(parse_landmarks(points.read_text())[:68], 512).save(work/'mask.png')
    drawn = []
    for source in (('--landmarks', points), ('--mask', work/'mask.png')):
        shell('generate', '--prompt', 'an astronaut', '--controlnet', work/'controlnet', '--base', base, *source, '--steps', 1, '--out', work/'out.png')
        drawn.append(np.array(Image.open(work/'out.png')))
    assert drawn[0].shape == (64, 64, 3) and (drawn[0] == drawn[1]).all()
    for folder in ('early', 'evaluation'): (work/'controlnet'/folder).mkdir()
    for name in ('config.json', 'diffusion_pytorch_model.safetensors'): shutil.copy(work/'controlnet'/name, work/'controlnet/early')
    write_json(work/'controlnet/evaluation/chosen.json', dict(controlnet='../early', scale=2.))   # as `evaluate` leaves it
    for asked, used in ((), ('early', 2)), (('--controlnet_conditioning_scale', '.5'), ('controlnet', .5)):
        shell('generate', '--prompt', 'an astronaut', '--controlnet', work/'controlnet', '--base', base, *source, '--steps', 1, '--out', work/'out.png', *asked)
        settings = json.loads(Image.open(work/'out.png').text['settings'])
        assert (settings['controlnet'], settings['controlnet_conditioning_scale']) == used

def test_train_hands_on_all_but_its_own_flags(monkeypatch, tmp_path):
    from facecontrol import evaluate, train
    given = []
    monkeypatch.setattr(evaluate, 'stop_when_worse', lambda patience, detect, similarity: f'stop after {patience}, by {detect.settings.split()[0]} and {similarity}')
    monkeypatch.setattr(evaluate, 'load_clip', lambda name: name)
    monkeypatch.setattr(train, 'main', lambda arguments, stop: given.append((arguments, stop)))
    shell('train', '--max_train_steps', 2, '--stop_when_worse', 3, '--report_to', 'none')
    shell('train', '--pretrained_model_name_or_path', 'sd21', '--max_train_steps', 2)
    shell('train', '--help')
    assert given == [(['--max_train_steps', '2', '--report_to', 'none'], 'stop after 3, by pocket and pocket'),
                     (['--max_train_steps', '2', '--pretrained_model_name_or_path', 'sd21'], None), (['--help'], None)]
    small = tiny_base(tmp_path/'base')
    shell('train', '--pretrained_model_name_or_path', small, '--stop_when_worse', 3, '--clip', 'another')
    assert given[-1] == (['--pretrained_model_name_or_path', str(small)], 'stop after 3, by pocket and another')
    with pytest.raises(ValueError, match='sd21 must be judged by --detector spiga'): shell('train', '--pretrained_model_name_or_path', 'sd21', '--stop_when_worse', 3)

def test_a_build_is_not_gone_on_with_other_boxes(work):
    build = ('build', work/'photos.zip', work/'boxes', '--captioner', 'none', '--max-bad', 1)
    shell(*build)
    with pytest.raises(ValueError, match="was begun with detector 'pocket .*, threshold 0.5', got 'pocket .*, boxes by cascade"): shell(*build, '--boxes', 'found')

def test_evaluate_tells_spiga_where_to_look(monkeypatch):
    from facecontrol import cli, detect, evaluate
    given = []
    monkeypatch.setattr(detect, 'load_detector', lambda name, find: given.append((name, find is None)))
    monkeypatch.setattr(detect, 'load_finder', lambda: 'finder')
    for name in ('pocket', 'spiga'): cli._detector(name)
    monkeypatch.setattr(evaluate, 'load_clip', lambda name: name)
    with pytest.raises(ValueError, match='run must be'): shell('evaluate', 'nowhere', '--base', 'pocket', '--detector', 'spiga')
    assert given == [('pocket', True), ('spiga', False), ('spiga', False)]

@pytest.mark.parametrize('words, said', [
    ('build nowhere out', 'nowhere is no folder, no zip'),
    ('build photos.zip out --detector best', "name must be 'pocket'"),
    ('faces out --n 0', 'n must be at least 1'),
    ('generate --prompt a --controlnet b --out c.png', 'exactly one of --image, --landmarks and --mask, got none'),
    ('generate --prompt a --controlnet b --out c.jpg --mask d', '--out must end in .png'),
    ('generate --prompt a --controlnet b --out c.png --mask d', 'there is no file d'),
    ('evaluate nowhere', 'run must be the output_dir of a training'),
    ('evaluate owner/controlnet --base sd21', 'sd21 must be judged by --detector spiga')])
def test_bad_input_costs_a_sentence(work, monkeypatch, words, said):
    monkeypatch.chdir(work)
    with pytest.raises(ValueError, match=said): shell(*words.split())
    assert not (work/'out').exists()

def test_what_a_disk_or_a_library_says_is_a_sentence_too(monkeypatch, tmp_path):
    (tmp_path/'file').write_text('')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', 'facecontrol faces file/out --n 1'.split())
    with pytest.raises(SystemExit, match=r'^facecontrol: .*file.*: (Not a directory|File exists)$'): main()
    assert str(_sentence(OSError('offline\nsee https://…'))) == 'offline'

def test_without_a_base_the_run_says_its_own(work):
    shell('generate', '--prompt', 'an astronaut', '--controlnet', work/'controlnet', '--mask', work/'mask.png', '--steps', 1, '--out', work/'own.png')
    assert json.loads(Image.open(work/'own.png').text['settings'])['base'] == 'base'
