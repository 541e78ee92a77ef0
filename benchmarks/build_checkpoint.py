"""Build a random Qwen2-VL / Qwen2.5-VL checkpoint folder (config + tokenizer + image processor + random weights) offline.

python build_ckpt.py OUT --arch qwen2_vl|qwen2_5_vl --preset tiny|small|3b --dtype float32
"""

import argparse
import json
import os
import random

TEMPLATE = (  # chat markup of the Qwen-VL family, images only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def make_tokenizer(vocab):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    rng = random.Random(0)
    words = [
        "the",
        "a",
        "red",
        "green",
        "blue",
        "circle",
        "square",
        "triangle",
        "box",
        "is",
        "at",
        "left",
        "right",
        "top",
        "bottom",
        "of",
        "image",
        "count",
        "how",
        "many",
        "answer",
        "think",
        "yes",
        "no",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "point",
        "label",
        "bbox_2d",
        "json",
        "detect",
        "find",
    ]
    corpus = [
        " ".join(rng.choice(words) for _ in range(30)) + " " + str([rng.randint(0, 999) for _ in range(4)])
        for _ in range(2000)
    ]
    corpus += ["".join(chr(rng.randint(97, 122)) for _ in range(rng.randint(3, 9))) for _ in range(4000)]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    t = Qwen2TokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=SPECIALS[1:],
        model_max_length=32768,
    )
    t.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    t.chat_template = TEMPLATE
    return t


PRESETS = {  # text hidden, layers, heads, kv, mlp, vocab(bpe), vision embed, depth, vheads, vmlp
    "tiny": dict(h=256, L=4, nh=4, kv=2, ff=688, bpe=2000, ve=128, vd=2, vh=4, vff=344, pad_vocab=None, theta=1e6),
    "small": dict(
        h=1024, L=12, nh=16, kv=2, ff=4096, bpe=2000, ve=640, vd=12, vh=10, vff=1712, pad_vocab=151936, theta=1e6
    ),
    "3b": dict(
        h=2048, L=36, nh=16, kv=2, ff=11008, bpe=2000, ve=1280, vd=32, vh=16, vff=3420, pad_vocab=151936, theta=1e6
    ),
}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--arch", default="qwen2_5_vl", choices=["qwen2_vl", "qwen2_5_vl"])
    ap.add_argument("--preset", default="tiny", choices=list(PRESETS))
    ap.add_argument("--dtype", default="float32")
    ap.add_argument("--tie", action="store_true")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--device", default="cpu")
    a = ap.parse_args()
    import torch
    import transformers

    p = PRESETS[a.preset]
    os.makedirs(a.out, exist_ok=True)
    tok = make_tokenizer(p["bpe"])
    ids = {s: tok.convert_tokens_to_ids(s) for s in SPECIALS}
    assert len(set(ids.values())) == len(SPECIALS) and tok.unk_token_id not in ids.values(), ids
    vocab = p["pad_vocab"] or ((len(tok) + 63) // 64 * 64)
    hd = p["h"] // p["nh"]
    s = [hd // 8, hd * 3 // 16, hd * 3 // 16]
    s[0] = hd // 2 - s[1] - s[2]
    text = dict(
        vocab_size=vocab,
        hidden_size=p["h"],
        intermediate_size=p["ff"],
        num_hidden_layers=p["L"],
        num_attention_heads=p["nh"],
        num_key_value_heads=p["kv"],
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "mrope_section": s, "rope_theta": p["theta"]},
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    common = dict(
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=a.tie,
    )
    if a.arch == "qwen2_vl":
        vis = dict(depth=p["vd"], embed_dim=p["ve"], hidden_size=p["h"], num_heads=p["vh"], mlp_ratio=4)
        cfg = transformers.Qwen2VLConfig(text_config=text, vision_config=vis, **common)
        M = transformers.Qwen2VLForConditionalGeneration
    else:
        vis = dict(
            depth=p["vd"],
            hidden_size=p["ve"],
            out_hidden_size=p["h"],
            num_heads=p["vh"],
            intermediate_size=p["vff"],
            window_size=112,
            fullatt_block_indexes=[p["vd"] - 1] if p["vd"] < 8 else [7, 15, 23, 31][: max(1, p["vd"] // 8)],
        )
        cfg = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vis, **common)
        M = transformers.Qwen2_5_VLForConditionalGeneration
    torch.manual_seed(a.seed)
    with torch.device(a.device):
        m = M(cfg).to(getattr(torch, a.dtype))
    m.generation_config.eos_token_id = ids["<|im_end|>"]
    m.generation_config.pad_token_id = ids["<|endoftext|>"]
    m.save_pretrained(a.out)
    tok.save_pretrained(a.out)
    ip = {
        "min_pixels": 28 * 28 * 4,
        "max_pixels": 28 * 28 * 1280,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor" if a.arch == "qwen2_5_vl" else "Qwen2VLProcessor",
    }
    json.dump(ip, open(os.path.join(a.out, "preprocessor_config.json"), "w"), indent=1)
    n = sum(x.numel() for x in m.parameters())
    nv = sum(x.numel() for k, x in m.named_parameters() if "visual" in k)
    print(
        json.dumps(
            {"params_M": n / 1e6, "vision_M": nv / 1e6, "vocab": vocab, "ids": ids, "files": sorted(os.listdir(a.out))}
        )
    )


main()
