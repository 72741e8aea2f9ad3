"The published tables load into ours, ours into what trains on them, and a source without frames is refused in one sentence"
import json, zipfile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import AutoTokenizer
from facecontrol.dataset import COLUMNS, build
from facecontrol.faces import COURSE_SEEDS, draw_face, face_caption, sample_face
from facecontrol.facesynthetics import encode_png, format_landmarks, frames, write_frames
from facecontrol.landmarks import draw_mask
from facecontrol.pocket import path

_PICTURE, _POINTS = pa.struct({'bytes': pa.binary(), 'path': pa.string()}), pa.list_(pa.list_(pa.float64()))
SPIGA = dict(image=_PICTURE, image_seg=_PICTURE, landmarks=pa.string(), spiga=_POINTS, spiga_seg=_PICTURE) # pcuenq/face_synthetics_spiga
CAPTIONED = SPIGA | dict(image_caption=pa.string()) # multimodalart/facesyntheticsspigacaptioned

def feature(kind): # as `datasets` noted it in 2023
    if kind == _PICTURE: return {'_type': 'Image'}
    if kind == _POINTS: return {'feature': {'feature': {'dtype': 'float64', '_type': 'Value'}, '_type': 'Sequence'}, '_type': 'Sequence'}
    return {'dtype': 'string', '_type': 'Value'}

def row_of(seed):
    "A row as the published tables have it: pictures without a name, points of a detector"
    drawing = draw_face(sample_face(seed), 64)
    points = drawing.visible.astype(float) + 1 / 3 # more digits than float32 has
    picture = lambda image: dict(bytes=encode_png(image), path=None)
    return dict(image=picture(drawing.image), image_seg=picture(drawing.image_seg), landmarks=format_landmarks(drawing.landmarks),
                spiga=points.tolist(), spiga_seg=picture(draw_mask(points, 64)), image_caption=face_caption(sample_face(seed)))

def publish(columns, folder):
    "Two files of a published dataset; their rows"
    rows = [{name: value for name, value in row_of(seed).items() if name in columns} for seed in (*COURSE_SEEDS, *range(100, 105))]
    notes = dict(info=dict(features={name: feature(kind) for name, kind in columns.items()}))
    schema = pa.schema(columns, metadata=dict(huggingface=json.dumps(notes)))
    (folder/'data').mkdir(parents=True)
    for n, part in enumerate((rows[:5], rows[5:])):
        pq.write_table(pa.Table.from_pylist(part, schema), folder/f'data/train-{n:05d}-of-00002-0123456789abcdef.parquet', row_group_size=2)
    return rows

def rows_in(folder): return [row for file in sorted(folder.glob('data/*.parquet')) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize('columns', [SPIGA, CAPTIONED], ids=['spiga', 'captioned'])
def test_a_published_table_becomes_ours(columns, tmp_path):
    theirs = publish(columns, tmp_path/'theirs')
    said = 'dataset' if 'image_caption' in columns else lambda images: ['a face'] * len(images)
    built = build(frames(tmp_path/'theirs'), 'dataset', said, tmp_path/'ours', test_share=0, source='facesynthetics', progress=False)
    assert built.train == len(theirs) and not built.bad
    for row, ours in zip(theirs, rows_in(tmp_path/'ours')):
        assert all(ours[name]['bytes'] == row[name]['bytes'] for name in ('image', 'image_seg')), 'the bytes pass through'
        assert ours['landmarks'] == row['landmarks'] and ours['spiga'] == row['spiga'] and ours['image_caption'] == row.get('image_caption', 'a face')
    packed = load_dataset(str(tmp_path/'ours'), cache_dir=str(tmp_path/'cache'), split='train')
    assert packed.features == COLUMNS
    for row, ours in zip(theirs, packed): assert np.array_equal(ours['spiga_seg'], draw_mask(np.array(row['spiga']), 64))

def test_the_published_table_is_what_we_train_on(tmp_path):
    publish(CAPTIONED, tmp_path/'theirs')
    theirs = load_dataset(str(tmp_path/'theirs'), cache_dir=str(tmp_path/'cache'), split='train')
    assert theirs.features == COLUMNS and theirs.num_rows == 8


def test_ours_is_what_diffusers_script_trains_on(tmp_path):
    "Flags name the columns, pictures decode to RGB, sentences to 77 ids; rows are prepared as they are asked for, in shuffled batches"
    source = write_frames([draw_face(sample_face(seed), 64) for seed in (*COURSE_SEEDS, *range(100, 109))], tmp_path/'faces')
    build(frames(source), 'dataset', lambda images: ['a face'] * len(images), tmp_path/'ours', shard_size=5, progress=False)
    rows = load_dataset(str(tmp_path/'ours'), None, cache_dir=str(tmp_path/'cache'))['train']
    flags = dict(image_column='image', conditioning_image_column='spiga_seg', caption_column='image_caption')
    assert set(flags.values()) <= set(rows.column_names)
    tokenizer = AutoTokenizer.from_pretrained(path('sd')/'tokenizer', use_fast=False)
    def tensor(image):
        assert isinstance(image, Image.Image) and image.mode == 'RGB'
        return torch.from_numpy(np.array(image.resize((32, 32), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
    def prepare(some):
        photos, masks, captions = (some[column] for column in flags.values())
        ids = tokenizer(captions, max_length=tokenizer.model_max_length, padding='max_length', truncation=True, return_tensors='pt').input_ids
        return dict(pixel_values=[2 * tensor(image) - 1 for image in photos], conditioning_pixel_values=[tensor(image) for image in masks], input_ids=ids)
    batches = list(torch.utils.data.DataLoader(rows.with_transform(prepare), batch_size=4, shuffle=True, drop_last=True))
    assert len(batches) == rows.num_rows // 4 > 0
    for batch in batches:
        assert batch['pixel_values'].shape == batch['conditioning_pixel_values'].shape == (4, 3, 32, 32) and batch['input_ids'].shape == (4, 77)
        assert batch['pixel_values'].min() < 0 <= batch['conditioning_pixel_values'].min() and batch['conditioning_pixel_values'].max() > 0
        assert batch['pixel_values'].dtype == torch.float32 and batch['input_ids'].dtype == torch.int64


@pytest.mark.parametrize('kind', ['folder', 'zip', 'table', 'list'])
def test_a_source_without_frames(kind, tmp_path):
    source = tmp_path/'source'
    source.mkdir()
    if kind == 'zip': zipfile.ZipFile(source/'faces.zip', 'w').close()
    if kind == 'table': pq.write_table(pa.schema(CAPTIONED).empty_table(), source/'train-00000-of-00001.parquet')
    if kind == 'list': (source/'metadata.jsonl').write_text('\n')
    with pytest.raises(ValueError, match='source must hold frames') as said: frames(source)
    assert len(str(said.value).splitlines()) == 1
