"""Spelling to phones, on CMUdict: a bidirectional LSTM encoder, an LSTM decoder, and Luong's attention.

python train.py configs/seq2seq_lstm.py
python evaluate.py runs/seq2seq_lstm --split test
python sample.py runs/seq2seq_lstm --source hello --attention hello.png

47 minutes on one CPU core. On the 5,875 test words, with five beams and without stress, the word error rate is 26.5 %
and the phone error rate 6.42 %; one beam: 26.8 and 6.48 %. With stress: 32.2 and 8.42 %.
"""

from zoo import Optimizer, Run
from zoo.data.pairs import Pairs
from zoo.seq2seq import Seq2Seq, Seq2SeqScoring

run = Run(
    family=Seq2Seq(
        network="recurrent", layers=2, width=256, embedding=128, context=20, dropout=0.2, label_smoothing=0.1
    ),
    data=Pairs(),
    optimizer=Optimizer(
        name="adam", learning_rate=2e-3, warmup_steps=500, final_fraction=0.01, clip_norm=1.0, ema_decay=0.999
    ),
    steps=16000,
    batch_size=128,
    log_every=50,
    eval_every=1000,
    score_every=5000,
    save_every=1000,
    sample_every=1000,
    scoring=Seq2SeqScoring(strip="[0-9]", words="none"),
)
