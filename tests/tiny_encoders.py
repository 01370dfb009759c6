"Tiny encoders with random weights, one of each kind, written as their makers would."

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, T5EncoderModel

from insight_nb.models.backbone import embedded_folder

WIDTH, LAYERS = 32, 2
_SIZE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
         "intermediate_size": 64}
_GROUPED = {"num_key_value_heads": 1, "head_dim": 16}
_LOCAL = {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 101,
          "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102}
# kind -> fields of its config
KINDS = {
    "bert": _SIZE, "roberta": _SIZE, "xlm-roberta": _SIZE, "camembert": _SIZE,
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 64},
    "albert": _SIZE | {"embedding_size": 16}, "electra": _SIZE | {"embedding_size": WIDTH},
    "mpnet": _SIZE, "deberta-v2": _SIZE | {"relative_attention": True,
                                           "pos_att_type": ["p2c", "c2p"]},
    "modernbert": _SIZE | _LOCAL, "eurobert": _SIZE | {"num_key_value_heads": 2},
    "roformer": _SIZE | {"embedding_size": WIDTH}, "ernie": _SIZE | {"use_task_id": True},
    "longformer": _SIZE | {"attention_window": [8, 8]}, "nomic_bert": _SIZE, "gte": _SIZE,
    "qwen3": _SIZE | _GROUPED, "llama": _SIZE | _GROUPED,
    "gemma3_text": _SIZE | _GROUPED | {"use_bidirectional_attention": True,
                                       "query_pre_attn_scalar": 16},
    "t5": {"d_model": WIDTH, "num_layers": LAYERS, "num_heads": 2, "d_kv": 16, "d_ff": 64}}


def write_encoder(kind, folder, pool=None, prompts=None, default=None, dense=()):
    """A folder with a tiny encoder; with `pool`, as sentence-transformers writes it; `dense`: kinds
    of activations of layers after the pooling."""
    torch.manual_seed(0)
    folder = Path(folder)
    config = AutoConfig.for_model(kind, vocab_size=30522, pad_token_id=0, **KINDS[kind])
    make = T5EncoderModel if kind == "t5" else AutoModel.from_config
    model = make(config).eval()
    for p in model.parameters():  # so that every part of a layer counts
        if p.ndim > 1:
            torch.nn.init.normal_(p.data, std=0.15)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (embedded_folder() / name).is_file():
            shutil.copy(embedded_folder() / name, folder)
    if pool:
        write_maker_files(folder, pool, prompts or {}, default, dense)
    return folder


def write_maker_files(folder, pool, prompts, default, dense):
    "What sentence-transformers reads: steps, pooling, prompts."
    steps = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{step}" if i else "",
                "type": f"sentence_transformers.models.{step}"} for i, step in enumerate(steps)]
    told = {"modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
            "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode": pool},
            "config_sentence_transformers.json": {"prompts": prompts,
                                                  "default_prompt_name": default}}
    (folder / "1_Pooling").mkdir()
    for name, what in told.items():
        (folder / name).write_text(json.dumps(what), encoding="utf-8")
    for i, kind in enumerate(dense, 2):
        write_dense(folder / f"{i}_Dense", kind, 48 if i == 2 else 24, WIDTH if i == 2 else 48)


def write_dense(folder, activation, size, given):
    "A layer after the pooling; the first has a bias."
    folder.mkdir()
    weights = {"linear.weight": torch.randn(size, given) / given**0.5}
    if given == WIDTH:
        weights["linear.bias"] = torch.randn(size) / 9
    told = {"in_features": given, "out_features": size, "bias": given == WIDTH,
            "activation_function": f"torch.nn.modules.{activation}"}
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
