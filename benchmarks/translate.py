"""Times beam search by sequence-to-sequence runs: the first 1,000 test sources, five beams, after compilation.

python -m benchmarks.translate runs/seq2seq_lstm [runs/seq2seq_transformer ...]

The runs must be trained, since an untrained network's outputs have other lengths. Prints one JSON line a run; `value`
is in sources a second.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from zoo.harness.memory import use_huge_pages

    use_huge_pages()

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from timing import emit, timed

from zoo.harness.trained import load_run
from zoo.sampling.tokens.translation import encode_source, translate

SOURCES, BEAMS = 1000, 5


def main(rundirs: list[str]) -> None:
    """Times each run."""
    for rundir in rundirs:
        trained = load_run(rundir)
        net, spec, length = trained.net(), trained.model.spec, trained.run.family.length
        test = trained.held_out("test").references()
        fitting = [source for source in test if len(spec.source.encode(source)) < length]
        sources = [encode_source(spec, source, length) for source in fitting[:SOURCES]]

        def run(net=net, spec=spec, sources=sources, length=length) -> None:
            translate(net, spec, sources, length=length, num_beams=BEAMS)

        timing = timed(run, warm=1, min_s=6, min_n=3)
        emit("zoo", f"translate {rundir}", "sources/s", len(sources), timing, seconds=round(timing["median"], 2))


if __name__ == "__main__":
    main(sys.argv[1:])
