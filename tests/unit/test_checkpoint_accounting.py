"""Checkpoints are converted with every key accounted for, and wrong ones say what is wrong."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.errors import MissingError, UsageError
from methods.blocks.checkpoints.accounting import (
    convert,
    part_of,
    read_checkpoint,
    restore,
    same_tensor,
    stacked_tensor,
)

LEFT_OUT = {r"schedule\..*": "made from the settings"}


def released() -> dict[str, Tensor]:
    return {
        "net.first.weight": torch.arange(6.0).reshape(2, 3),
        "net.first.bias": torch.ones(2),
        "net.qkv": torch.arange(18.0).reshape(6, 3),
        "head.weight": torch.zeros(1, 2),
        "schedule.betas": torch.linspace(0, 1, 4),
    }


def parts():
    net = nn.ModuleDict({"a": nn.Linear(3, 2), **{which: nn.Linear(3, 2, bias=False) for which in "qkv"}})
    fused = [stacked_tensor("qkv", [f"{which}.weight" for which in "qkv"])]
    return [
        part_of("net", "net.", net, lambda name: name.replace("a.", "first."), fused),
        part_of("head", "head.", nn.Linear(2, 1, bias=False), lambda name: name),
    ]


def test_parts_compose_and_come_back():
    conversion = convert(released(), parts(), expected="x", source="y", left_out=LEFT_OUT)
    assert torch.equal(conversion.states["net"]["k.weight"], released()["net.qkv"][2:4])
    assert torch.equal(conversion.states["net"]["a.weight"], released()["net.first.weight"])
    assert conversion.reasons == {"schedule.betas": "made from the settings"}
    back = restore(conversion.states, parts(), conversion.left_out)
    assert back.keys() == released().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in released().items())


def test_every_problem_is_named_with_the_file_that_was_expected():
    wrong = released()
    del wrong["net.first.bias"]
    wrong |= {"extra.weight": torch.zeros(1), "net.qkv": torch.zeros(6, 4)}
    with pytest.raises(UsageError) as error:
        convert(wrong, parts(), expected="Released.ckpt", source="mine.ckpt", left_out=LEFT_OUT)
    message = str(error.value)
    assert "mine.ckpt" in message
    assert "Released.ckpt" in message
    assert "1 of 4 keys are missing: net.first.bias" in message
    assert "1 keys are unexpected: extra.weight" in message
    assert "net.qkv is (6, 4) instead of (6, 3)" in message


def test_a_left_out_pattern_takes_whole_names_only():
    with pytest.raises(UsageError, match=r"schedule\.betas"):
        convert(released(), parts(), expected="x", source="y", left_out={"schedule": "part of a name"})


def test_two_parts_cannot_take_one_key():
    twice = [*parts(), part_of("again", "head.", nn.Linear(2, 1, bias=False), lambda name: name)]
    with pytest.raises(ValueError, match=r"head\.weight"):
        convert(released(), twice, expected="x", source="y")


def test_entries_keep_the_order_of_query_key_and_value():
    entry = stacked_tensor("in_proj", ["q", "k", "v"])
    tensor = torch.randn(9, 2)
    assert torch.equal(entry.merge(entry.split(tensor)), tensor)
    assert same_tensor("a", "b").split(tensor)[0] is tensor


def test_files_are_read_without_running_code(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.ckpt")
    torch.save({"a": torch.ones(2), "hook": os.getcwd}, tmp_path / "code.ckpt")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("a.safetensors", "a.ckpt"):
        assert torch.equal(read_checkpoint(tmp_path / name)["a"], torch.ones(2))
    for name, message in (
        ("code.ckpt", "without running the code"),
        ("empty.ckpt", "no tensors by name"),
        ("text.safetensors", "not a readable safetensors"),
    ):
        with pytest.raises(UsageError, match=message):
            read_checkpoint(tmp_path / name)
    with pytest.raises(MissingError, match="is not there"):
        read_checkpoint(tmp_path / "absent.ckpt")


def test_names_of_nested_groups_are_joined_to_the_groups(tmp_path):
    groups = {"image_proj": {"norm.weight": torch.ones(2)}, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(3)}}
    torch.save({**groups, "epoch": 3}, tmp_path / "groups.bin")
    found = read_checkpoint(tmp_path / "groups.bin")
    assert found.keys() == {"image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"}
    assert torch.equal(found["image_proj.norm.weight"], torch.ones(2))
