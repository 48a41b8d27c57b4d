"""References of PyTorch: a DCGAN in the layout of its example, LSTM and GRU layers, a file in its earlier format."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from references.files import write_arrays


def write_dcgan_reference(folder: Path, seed: int) -> None:
    """Writes a tiny DCGAN of 32 pixels in the layout of PyTorch's example and its outputs; images are [b h w c].

    `generator.pth` and `discriminator.safetensors` have the weights. The outputs are images, logits and moving moments
    in evaluation and in training, and gradients of the non-saturating game.
    """
    from torch import nn

    width, latent, channels = 3, 5, 2

    def norm(features: int, activation: nn.Module) -> list[nn.Module]:
        return [nn.BatchNorm2d(features), activation]

    def up(i: int, o: int, *place: int) -> nn.Module:
        return nn.ConvTranspose2d(i, o, 4, *place, bias=False)

    def down(i: int, o: int, *place: int) -> nn.Module:
        return nn.Conv2d(i, o, 4, *place, bias=False)

    generator = nn.Sequential(
        up(latent, 4 * width, 1, 0), *norm(4 * width, nn.ReLU()), up(4 * width, 2 * width, 2, 1),
        *norm(2 * width, nn.ReLU()), up(2 * width, width, 2, 1), *norm(width, nn.ReLU()), up(width, channels, 2, 1),
        nn.Tanh(),
    )  # fmt: skip
    leaky = nn.LeakyReLU(0.2)
    discriminator = nn.Sequential(
        down(channels, width, 2, 1), leaky, down(width, 2 * width, 2, 1), *norm(2 * width, leaky),
        down(2 * width, 4 * width, 2, 1), *norm(4 * width, leaky), down(4 * width, 1, 1, 0), nn.Flatten(0),
    )  # fmt: skip
    players = {"gen": generator, "disc": discriminator}
    rng = np.random.default_rng([seed, 400])
    for player in players.values():
        for name, value in sorted(player.state_dict().items()):
            noise = rng.standard_normal(value.shape)
            if value.ndim == 4:
                value.copy_(torch.tensor(0.25 * noise))
            elif name.endswith("running_var"):
                value.copy_(torch.tensor(np.exp(0.3 * noise)))
            elif value.ndim == 1:
                value.copy_(torch.tensor(float(name.endswith("weight")) + 0.3 * noise))
    target = folder / "dcgan"
    target.mkdir(parents=True, exist_ok=True)
    torch.save({"netG_state_dict": nn.ModuleDict({"main": generator}).state_dict()}, target / "generator.pth")
    write_arrays(target / "discriminator.safetensors", {k: v.numpy() for k, v in discriminator.state_dict().items()})

    z = torch.tensor(rng.standard_normal((4, latent, 1, 1)), dtype=torch.float32)
    x = torch.tensor(rng.uniform(-1, 1, (4, channels, 32, 32)), dtype=torch.float32)
    arrays = {"z": z[:, :, 0, 0], "x": x.permute(0, 2, 3, 1)}
    for mode in ("eval", "train"):
        for player in players.values():
            player.train(mode == "train")
        fakes = generator(z)
        real, fake = discriminator(x), discriminator(fakes)
        arrays |= {f"{mode}.images": fakes.permute(0, 2, 3, 1), f"{mode}.real": real, f"{mode}.fake": fake}
    losses = {
        "gen": -nn.functional.logsigmoid(fake).mean(),
        "disc": -(nn.functional.logsigmoid(real) + nn.functional.logsigmoid(-fake)).mean(),
    }
    for player, loss in losses.items():
        names, parameters = zip(*players[player].named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        arrays[f"{player}.loss"] = loss
        arrays |= {f"{player}.gradient.{name}": value for name, value in zip(names, gradients, strict=True)}
        arrays |= {f"{player}.moved.{name}": v for name, v in players[player].named_buffers() if "running" in name}
    write_arrays(target / "expected.safetensors", {name: value.detach().numpy() for name, value in arrays.items()})


def recurrent_reference(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two layers of LSTM and GRU: states, gradients, and bidirectional outputs for rows of different lengths."""
    rows, steps, features, width = 4, 6, 3, 5
    arrays: dict[str, np.ndarray] = {}

    def draw(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)

    for cell, kind in (("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
        one, both = (kind(features, width, 2, batch_first=True, bidirectional=way) for way in (False, True))
        for name, network in (("one", one), ("both", both)):
            for weight, parameter in network.named_parameters():
                parameter.data = 0.6 * draw(*parameter.shape)
                arrays[f"{cell}.{name}.{weight}"] = parameter.detach().numpy()
        x, h, c = draw(rows, steps, features), draw(2, rows, width), draw(2, rows, width)
        x.requires_grad_(True)
        y, last = one(x, (h, c) if cell == "lstm" else h)
        towards = draw(*y.shape)
        (y * towards).sum().backward()
        arrays |= {f"{cell}.gradient.{name}": parameter.grad.numpy() for name, parameter in one.named_parameters()}
        lengths = torch.tensor([6, 1, 4, 3])
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        read, ends = both(packed)
        read, _ = torch.nn.utils.rnn.pad_packed_sequence(read, batch_first=True)
        lasts, both_ends = (z if cell == "lstm" else (z,) for z in (last, ends))
        arrays |= {f"{cell}.{name}": value.detach().numpy() for name, value in {
            "x": x, "h": h, "c": c, "y": y, "towards": towards, "of_x": x.grad, "last": torch.stack(lasts),
            "read": read, "ends": torch.stack(both_ends), "lengths": lengths.int(),
        }.items()}  # fmt: skip
    return arrays


def write_legacy_reference(folder: Path) -> None:
    """Writes a file in the format of `torch.save` before PyTorch 1.6, and its tensors."""
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": whole, "part": whole.T[1:4, ::2], "half": whole[0].half(), "count": torch.tensor(7),
               "none": torch.zeros(0, 3)}  # fmt: skip
    torch.save(OrderedDict(tensors), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    write_arrays(folder / "legacy.safetensors", {name: tensor.numpy() for name, tensor in tensors.items()})
