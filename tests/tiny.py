"A random Stable Diffusion, too small to draw anything: the true classes in the true folder layout, made in a second."
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def tiny_tokenizer(
    folder:Path, # receives vocab.json and merges.txt
)->CLIPTokenizer: # one token a letter, 77 tokens a prompt
    "A CLIP tokenizer that knows the letters and nothing else"
    letters = [chr(c) for c in range(33, 127)]
    words = letters + [c + '</w>' for c in letters] + ['<|startoftext|>', '<|endoftext|>']
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'vocab.json').write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder/'merges.txt').write_text('#version: 0.2\n')
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def tiny_base(
    folder:str|Path, # receives model_index.json and a folder per part, as `save_pretrained` writes them
    prediction_type:str='v_prediction', # or 'epsilon'
    like:str='sd15', # or 'sd21': all four levels, linear projections, and the number of attention heads said for each level
)->str: # the folder
    "Write a random Stable Diffusion of 64 px: VAE factor 8, two UNet levels unless it is like 2.1"
    shapes = dict(sd15=dict(block_out_channels=(32, 64), attention_head_dim=4, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D')),
        sd21=dict(block_out_channels=(32, 32, 64, 64), attention_head_dim=(2, 4, 8, 8), use_linear_projection=True))   # diffusers' own levels are those of 1.5 and 2.1
    folder = Path(folder)
    tokenizer = tiny_tokenizer(folder/'tokenizer')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, sample_size=64,
            down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4)
        unet = UNet2DConditionModel(sample_size=8, layers_per_block=1, cross_attention_dim=32, **shapes[like])
        text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    scheduler = DDPMScheduler(beta_schedule='squaredcos_cap_v2', prediction_type=prediction_type, clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)
    return str(folder)


def tiny_xl(
    folder:str|Path, # receives what a Stable Diffusion XL's folder holds
)->str: # the folder
    "Write a random Stable Diffusion XL of 64 px: two text encoders, a summary of the text, the picture's size"
    folder = Path(folder)
    tokenizer = tiny_tokenizer(folder/'tokenizer')
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=32,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, sample_size=64,
            down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4)
        unet = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type='text_time', addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'))
        encoders = CLIPTextModel(text), CLIPTextModelWithProjection(text)
    StableDiffusionXLPipeline(vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=DDPMScheduler(beta_schedule='scaled_linear', steps_offset=1), add_watermarker=False).save_pretrained(folder)
    return str(folder)
