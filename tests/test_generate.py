"Pipelines of every kind of base, with random weights in the true classes: what is loaded, what is withheld, what moves"
import warnings
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import ControlNetModel, StableDiffusionPipeline, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from hypothesis import given, settings, strategies as st
from tiny import tiny_base, tiny_xl
from transformers import CLIPConfig, CLIPImageProcessor
from facecontrol.faces import draw_face, sample_face
from facecontrol.generate import express, generate, lift, load_pipeline, morph, move, pose, scale, view
from facecontrol.landmarks import draw_mask, nme
from facecontrol.loss import fingerprint

mask = draw_mask(draw_face(sample_face(3), 64).visible, 64)


@pytest.fixture(scope='module')
def sd15(tmp_path_factory):
    "A tiny Stable Diffusion whose safety checker withholds everything"
    folder = tmp_path_factory.mktemp('sd15')
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base(folder, 'epsilon'))
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8)
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=sizes, vision_config=sizes | dict(image_size=32, patch_size=16), projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-10)
    pipeline.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=32))
    pipeline.register_to_config(requires_safety_checker=True)
    pipeline.save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def sdxl(tmp_path_factory): return tiny_xl(tmp_path_factory.mktemp('sdxl'))

def loud(unet): # a ControlNet of the base's own shape that can be heard
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    for p in controlnet.parameters(): torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(0))
    return controlnet


def test_xl_takes_the_xl_pipeline_and_obeys(sdxl, tmp_path):
    plain = load_pipeline(sdxl, device='cpu')
    loud(plain.unet).save_pretrained(tmp_path)
    pipeline = load_pipeline(sdxl, tmp_path, 'cpu')
    assert type(plain) is StableDiffusionXLPipeline and type(pipeline) is StableDiffusionXLControlNetPipeline
    free, first, again = generate(plain, 'a cat', steps=2)[0], *(generate(pipeline, 'a cat', mask, 0, steps=2)[0] for _ in range(2))
    assert first.size == (64, 64) and np.array_equal(first, again) and not np.array_equal(first, free)
    assert np.array_equal(generate(pipeline, 'a cat', mask, 0, steps=2, controlnet_conditioning_scale=0.)[0], free)

def test_what_the_safety_checker_withholds_is_said(sd15):
    with pytest.warns(UserWarning, match="withheld this picture of 'a man'"): image, = generate(load_pipeline(sd15, device='cpu'), 'a man', steps=1)
    assert not np.any(image) and 'withheld' in image.info

def test_without_the_safety_checker_nothing_is_withheld(sd15):
    pipeline = load_pipeline(sd15, loud(load_pipeline(sd15, device='cpu').unet), 'cpu', safety_checker=False)
    with warnings.catch_warnings(record=True) as said: image, = generate(pipeline, 'a man', mask, steps=1)
    assert pipeline.safety_checker is None and np.any(image) and not image.info and not [w for w in said if 'withheld' in str(w.message)]

def test_half_precision_reaches_every_part(sd15):
    pipeline = load_pipeline(sd15, loud(load_pipeline(sd15, device='cpu').unet), 'cpu', torch.bfloat16)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.controlnet)} == {torch.bfloat16}
    assert generate(pipeline, 'a man', mask, steps=1)[0].size == (64, 64)


face = st.integers(0, 400).map(lambda seed: draw_face(sample_face(seed), 64).visible)
angle, amount = st.floats(-15, 15), st.floats(-.5, .5)

@settings(max_examples=15, deadline=None)
@given(face)
def test_asked_for_nothing_an_edit_changes_nothing(points):
    for edited in (pose(points), express(points), move(points), scale(points), morph(points, points + 5, 0)): assert (edited == points).all()
    assert nme([view(lift(points))], [points])[0] < .02

@settings(max_examples=15, deadline=None)
@given(face, angle, angle, amount)
def test_edits_compose(points, yaw, more, smile):
    apart = nme([pose(pose(points, yaw), more), express(express(points, smile=smile), smile=-smile), pose(pose(points, roll=more), roll=-more)],
                [pose(points, yaw + more), points, points])
    assert apart.max() < .03

@settings(max_examples=15, deadline=None)
@given(face, angle, st.floats(.5, 3), st.floats(-200, 200))
def test_a_turn_is_the_same_wherever_and_however_large_the_face(points, yaw, by, to):
    points = points.astype(float)
    assert nme([pose(by * points + to, yaw)], [by * pose(points, yaw) + to])[0] < .01

def test_a_controlnet_of_another_base_is_refused(sd15, sdxl):
    with pytest.raises(ValueError, match=f"controlnet for {sdxl} must be for this base: its cross_attention_dim is 32, the base's 64"):
        load_pipeline(sdxl, loud(load_pipeline(sd15, device='cpu').unet), 'cpu')

def test_weights_that_wait_elsewhere_are_the_same(sd15):
    unet = load_pipeline(sd15, device='cpu').unet
    said = fingerprint(unet)
    cpu_offload(unet, 'cpu')   # as `enable_sequential_cpu_offload` does on a small card
    assert all(p.is_meta for p in unet.parameters()) and fingerprint(unet) == said
