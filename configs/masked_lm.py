"""A small BERT of Shakespeare's plays: masked byte pairs, and whether lines follow lines.

python train.py configs/masked_lm.py
"""

from zoo import Optimizer, Run
from zoo.data.sentence_pairs import SentencePairs
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
