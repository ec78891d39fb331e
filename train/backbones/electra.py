"""ELECTRA: BERT's layer and parameter names, without pooler. In the small model, the embeddings are projected."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.bert import BertAdapter
from berxit.train.backbones.weights import EmbeddingWeights, Linear


class ElectraAdapter(BertAdapter):
    task_heads = (
        *Adapter.task_heads,
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
        "sequence_summary.",
    )

    def pooler(self, backbone: PreTrainedModel) -> nn.Linear | None:
        return None

    def remove_pooler(self, backbone: PreTrainedModel) -> None:
        pass

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        projection = getattr(backbone, "embeddings_project", None)  # only if the sizes differ
        return replace(super().embeddings(backbone), projection=projection and Linear.of(projection))
