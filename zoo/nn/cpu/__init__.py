"""Forms of layers that are tuned for XLA's CPU compiler; `zoo.nn.platform` chooses them. See each module for why.

Every form equals its plain form by test. `python -m benchmarks cpu_forms` times both, and shows when a new XLA makes a
form needless.
"""
