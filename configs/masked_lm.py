"""A small BERT of Shakespeare's plays: masked byte-pair tokens and next-sentence prediction for lines.

python train.py configs/masked_lm.py
python sample.py runs/masked_lm --fill "The [MASK] of Denmark"

96 minutes on one CPU core with other work beside it. On the test plays, the accuracy of masked tokens is 33.1 % top-1
and 52.7 % top-5 (a unigram baseline: 8.7 and 20.6 %), and that of next-sentence prediction is 80.0 %.
"""

from zoo import Optimizer, Run
from zoo.data.text import SentencePairs
from zoo.masked_lm import MaskedLM

run = Run(
    family=MaskedLM(layers=4, heads=4, width=256, context=64, dropout=0.0),
    data=SentencePairs(tokenizer="bpe", vocabulary=4096),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=300, weight_decay=0.01, clip_norm=1.0),
    steps=4000,
    batch_size=64,
    log_every=20,
    eval_every=500,
    score_every=1000,
    save_every=500,
    sample_every=1000,
)
