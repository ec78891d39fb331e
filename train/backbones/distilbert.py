"""DistilBERT: BERT's layer under other parameter names, without token types and pooler."""

from __future__ import annotations

from transformers import PreTrainedModel

from berxit.train.backbones.adapter import Adapter
from berxit.train.backbones.weights import ACTIVATIONS, EmbeddingWeights, LayerWeights, Linear, Norm, array


class DistilBertAdapter(Adapter):
    layer_list = "transformer.layer."
    task_heads = (
        *Adapter.task_heads,
        "pre_classifier.",
        "vocab_transform.",
        "vocab_layer_norm.",
        "vocab_projector.",
    )
    implemented = {  # noqa: RUF012 - as the base class has it
        **Adapter.implemented,
        "activation": ACTIVATIONS,
    }

    @property
    def dropout(self) -> float:
        return float(self.config.seq_classif_dropout)

    def embeddings(self, backbone: PreTrainedModel) -> EmbeddingWeights:
        module = backbone.embeddings
        return EmbeddingWeights(
            word_embeddings=array(module.word_embeddings.weight),
            positions=array(module.position_embeddings.weight),
            types=None,
            norm=Norm.of(module.LayerNorm),
        )

    def encoder_layers(self, backbone: PreTrainedModel) -> list[LayerWeights]:
        return [
            LayerWeights(
                qkv=Linear.of(layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin),
                output=Linear.of(layer.attention.out_lin),
                attention_norm=Norm.of(layer.sa_layer_norm),
                up=Linear.of(layer.ffn.lin1),
                down=Linear.of(layer.ffn.lin2),
                output_norm=Norm.of(layer.output_layer_norm),
                heads=self.config.n_heads,
                activation=self.config.activation,
            )
            for layer in backbone.transformer.layer
        ]
