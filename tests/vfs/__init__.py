"""Tests of `kinetics_fs.vfs`."""
