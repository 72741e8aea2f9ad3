"What the training notebook cannot hold: a base of the other kind, the command, and a second process"
import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from safetensors.torch import load_file

from facecontrol.train import train_controlnet
from tests.tiny import tiny_base


@pytest.fixture(scope='module')
def faces(tmp_path_factory): # 8 rows of noise in the published columns
    folder, rng = tmp_path_factory.mktemp('faces'), np.random.default_rng(0)
    def noise(): return Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    rows = [dict(image=noise(), spiga_seg=noise(), image_caption=f'face {n}') for n in range(8)]
    (folder/'data').mkdir()
    Dataset.from_list(rows).to_parquet(folder/'data/train-00000-of-00001.parquet')
    return folder


def weights(run): return load_file(Path(run)/'diffusion_pytorch_model.safetensors')


@pytest.mark.parametrize('prediction_type', ['epsilon', 'v_prediction'])
def test_stock_pipeline_loads_what_was_trained(tmp_path, faces, prediction_type):
    base = tiny_base(tmp_path/'base', prediction_type)
    train_controlnet(base, str(faces), str(tmp_path/'run'), max_train_steps=2, train_batch_size=4)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=ControlNetModel.from_pretrained(tmp_path/'run'), safety_checker=None)
    assert pipeline('a face', image=Image.new('RGB', (64, 64)), num_inference_steps=2).images[0].size == (64, 64)


def test_two_processes_agree_with_one(tmp_path, faces):
    base = tiny_base(tmp_path/'base')
    def run(processes, batch): # both take 3 steps of 4 rows
        out = tmp_path/f'run-{processes}'
        command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', processes, '-m', 'facecontrol.train',
            '--pretrained_model_name_or_path', base, '--dataset_name', faces, '--output_dir', out, '--train_batch_size', batch,
            '--max_train_steps', 3, '--learning_rate', 1e-3, '--proportion_empty_prompts', .5]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(list(map(str, command)), cwd=root, env=os.environ | {'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true'}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert '3 steps, final loss' in done.stdout
        return out
    one, two = run(1, 4), run(2, 2)
    assert np.allclose(*(json.loads((out/'train.json').read_text())['losses'] for out in (one, two)), rtol=1e-5)
    for name, weight in weights(one).items(): assert np.allclose(weight, weights(two)[name], atol=1e-5), name
