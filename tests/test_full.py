"Stable Diffusion 2.1 at its true size, 512 px, batch 4: arithmetic and memory of a step, counted on tensors without contents"
import os
import pytest
from facecontrol.memory import LADDER, Rung
from facecontrol.plan import count_step
from full import count

@pytest.fixture(scope='module')
def plain(): return count(Rung(frozen_bf16=True))

def test_what_is_cached_is_not_computed(plain):
    script = count(Rung(frozen_bf16=True), cached=False)
    assert plain.tflop <= 9.4 and 13.5 < script.tflop < 14.5        # the limit of removing work is 9.33 of 13.98

def test_each_rung_needs_less_than_the_one_above(plain):
    peaks = dict(plain=plain.peak) | {name: count(rung._replace(frozen_bf16=True), batch=1 if name == '4gb' else 4).peak for name, rung in LADDER.items()}
    assert list(peaks.values()) == sorted(peaks.values(), reverse=True)
    assert peaks['equal'] <= 8.5 and peaks['8gb'] <= 6 and peaks['6gb'] <= 4.5 and peaks['4gb'] <= 3.1, peaks

def test_selective_checkpointing_recomputes_nothing_that_is_dear(plain):
    assert abs(count(LADDER['equal']._replace(frozen_bf16=True)).tflop / plain.tflop - 1) < .01
    assert 1.15 < count(Rung('full', frozen_bf16=True)).tflop / plain.tflop < 1.35       # the page says a quarter more

@pytest.mark.parametrize('rung, checkpointing, remembered', [(LADDER['8gb'], True, 2), (LADDER['equal']._replace(frozen_bf16=True), 'selective', 8)])
def test_the_plan_counts_what_the_trainer_keeps(rung, checkpointing, remembered):
    planned, kept = count_step('sd21', 512, 'bf16', gradient_checkpointing=checkpointing), count(rung)
    assert abs((planned.alive(4) + remembered * planned.trained) / 2**30 / kept.peak - 1) < .1       # Adam's two numbers: a byte each, or four

@pytest.mark.skipif('SLOW' not in os.environ, reason='minutes, and 7 GB of memory: set SLOW')
def test_a_real_step_takes_what_was_counted():
    counted, real = count(LADDER['8gb']), count(LADDER['8gb'], real=True)
    assert abs(real.peak / counted.peak - 1) < .02 and abs(real.tflop / counted.tflop - 1) < .01
