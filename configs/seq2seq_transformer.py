"""Spelling to phones, on CMUdict: a Transformer encoder and decoder.

python train.py configs/seq2seq_transformer.py
python evaluate.py runs/seq2seq_transformer --split test
python sample.py runs/seq2seq_transformer --source hello --attention hello.png

54 minutes on one CPU core. On the 5,875 test words, with five beams and without stress, the word error rate is 29.4 %
and the phone error rate 7.30 %; one beam: 30.0 and 7.42 %. With stress: 34.8 and 9.36 %.
"""

from zoo import Optimizer, Run
from zoo.data.pairs import Pairs
from zoo.seq2seq import Seq2Seq, Seq2SeqScoring

run = Run(
    family=Seq2Seq(
        network="transformer", layers=3, heads=4, width=192, context=20, dropout=0.1, label_smoothing=0.1
    ),
    data=Pairs(),
    optimizer=Optimizer(
        name="adam", learning_rate=1e-3, warmup_steps=1000, beta2=0.98, final_fraction=0.01, clip_norm=1.0,
        ema_decay=0.999,
    ),
    steps=10000,
    batch_size=128,
    log_every=50,
    eval_every=1000,
    score_every=5000,
    save_every=1000,
    sample_every=1000,
    scoring=Seq2SeqScoring(strip="[0-9]", words="none"),
)  # fmt: skip
