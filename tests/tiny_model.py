"""A sentence-transformers model of some ten thousand random weights, whose words are letters."""

from __future__ import annotations

import json
import string
from pathlib import Path

WIDTH = 16


def write(folder: Path, seed: int = 0) -> Path:
    """Writes the model as a folder; other seeds, other weights."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel
    from transformers.models.bert.tokenization_bert import BertTokenizer

    body = folder.with_name(f"{folder.name}.body")
    body.mkdir(parents=True)
    letters = [*string.ascii_lowercase, *string.digits]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=64,
        initializer_range=0.5,  # so that texts differ
    )
    BertModel(config).save_pretrained(body)
    BertTokenizer(vocab={word: code for code, word in enumerate(words)}, model_max_length=64).save_pretrained(body)
    made = SentenceTransformer(modules=[Transformer(str(body), max_seq_length=64), Pooling(WIDTH)], device="cpu")
    made.save(str(folder), create_model_card=False)
    return folder


def rename_module(folder: Path, kind: str) -> None:
    """Lets the model ask for another class."""
    said = json.loads((folder / "modules.json").read_text())
    said[0]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(said))
