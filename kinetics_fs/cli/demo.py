"""`kinetics-fs demo`."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import click

from kinetics_fs.cli.command import Command


@click.command("demo", cls=Command, short_help="Mount a tiny Kinetics that is made and served on this machine.")
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@click.option("--once", is_flag=True, help="Check every step, then unmount and remove everything.")
def command(mountpoint: Path | None, once: bool) -> None:
    """Mount a tiny Kinetics that is made and served on this machine, and read and check its clips.

    The demo does not use the internet. If this machine cannot mount, the demo reads the clips from Python, and names
    the parts that it leaves out. The mount stays at MOUNTPOINT, by default a new folder, until you run
    `kinetics-fs umount`, which also ends the video site of the demo.

    \b
    kinetics-fs demo
    kinetics-fs demo --once
    """
    from kinetics_fs.demo.run import Demo

    with Demo(mountpoint, step=_print_step, detail=_print_detail) as demo:
        demo.run()
    if once:
        demo.take_down()
        click.echo("\nEvery step worked. The demo has removed its mount and its files.")
    elif not demo.is_mounted:
        demo.end_site()
        click.echo(f"\nEvery step worked. The clips are in {demo.folder / 'clips'}")
        click.echo(f"To remove them: rm -r {shlex.quote(str(demo.folder))}")
    else:
        program = "kinetics-fs" if shutil.which("kinetics-fs") else sys.argv[0]
        click.echo(f"\nThe mount stays at {demo.mountpoint}")
        root, folder = shlex.quote(str(demo.mountpoint)), shlex.quote(str(demo.folder))
        click.echo(f"To end it: {program} umount {root} && rm -r {folder}")


def _print_step(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _print_detail(text: str) -> None:
    click.echo(f"  {text}")
