"""The full variational bound of a diffusion model, with every term, on some held-out images."""

from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.estimates import row_mean
from zoo.core.family import Batch, Metrics
from zoo.sampling.batches import in_batches

AT_ONCE = 100
"""Times t of one image that one call of the network takes, at most."""


def whole_bound(family: Any, state: Any, data: DataSet, count: int, key: Key[Array, ""]) -> Metrics:
    """Computes L_T plus the bound's terms at all t, in bits per dimension; Ho et al. 2020, equation 5.

    Args:
        family: a `DDPM`, or another family with `timesteps` and `terms`.
        state: its networks.
        data: its first held-out images are used.
        count: number of images.
        key: source of the noise.

    Returns:
        The bound and its two parts, the rate (L_T and all terms but L_0) and the distortion (L_0): means over the
        images with their standard errors, and the number of images.

    Raises:
        UserError: the data has no held-out images.
    """
    T = family.timesteps
    batches = (data.held_out_at(index) for index in range(data.held_out_batches))
    images = ({"image": batch["image"][i : i + 1], "label": batch["label"][i : i + 1]}
              for batch in batches for i in np.flatnonzero(batch["valid"]))  # fmt: skip
    found = []
    for number, image in enumerate(islice(images, count)):
        image_key = jax.random.fold_in(key, number)
        last, terms = in_batches(partial(_terms, family, state, image, image_key), T, AT_ONCE)
        found.append((last[0] + terms[1:].sum(dtype=np.float64), terms[0]))
    if not found:
        raise UserError(f"bound-images is {count}, but there are no held-out images; it must be 0")
    rate, distortion = np.array(found).T
    return {
        **row_mean("bound_bits_per_dim", rate + distortion),
        **row_mean("bound_rate_bits_per_dim", rate),
        **row_mean("bound_distortion_bits_per_dim", distortion),
        "bound_images": len(found),
    }


@partial(jax.jit, static_argnums=0)
def _terms(
    family: Any, state: Any, image: Batch, key: Key[Array, ""], t: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Returns L_T and the bound's terms of one image at n times; times from T on, which fill a batch, become T - 1."""
    t = jnp.minimum(t, family.timesteps - 1).astype(jnp.float32)
    batch = {name: value.repeat(len(t), axis=0) for name, value in image.items()}
    batch["row"] = t.astype("int32")  # independent noise for each time
    _, eps_key = jax.random.split(key)  # as in `evaluate`, which draws t with the first key
    _, last, terms = family.terms(state, batch, t, eps_key)
    return last, terms
