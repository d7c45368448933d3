"""The peer of ``c3_speed``: the whole network and the whole head over a padded sequence."""

from __future__ import annotations

from mindspore import nn, ops

from pangu_lab.model.pangu import PanguLogits, PanguStage, Parts, Weights


class PaddedScores(nn.Cell):
    """ids, positions, labels (1, seq) int32 → log-probability of each label (seq,)."""

    def __init__(self, config, weights):
        super().__init__(auto_prefix=False)
        self.logits = PanguLogits(PanguStage(Parts(config, Weights(weights))))
        self.log_softmax = ops.LogSoftmax(-1)
        self.gather = ops.GatherD()

    def construct(self, ids, positions, labels):
        rows = self.logits(ids, positions)[0]
        return ops.reshape(self.gather(self.log_softmax(rows), 1, ops.reshape(labels, (-1, 1))), (-1,))
