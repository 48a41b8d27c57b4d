"""A small BERT of Shakespeare's plays: masked byte-pair tokens and next-sentence prediction for lines.

python train.py configs/masked_lm.py
python sample.py runs/masked_lm --fill "The [MASK] of Denmark"

38 minutes on two CPU cores shared with other work. On the held-out plays, the accuracy of masked tokens is 34.1 % top-1
and 54.2 % top-5 (a unigram baseline: 9.3 and 21.2 %), and that of next-sentence prediction is 80.1 %.

These figures predate the dev split of the data and have not been measured again yet.
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
