"""Correct Lightning's loop counters around checkpoints, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from lightning.pytorch import Trainer

from vrft.data.datamodule import train_loader_of
from vrft.training.lightning_internals import forget_evaluation, shift_logged_step


def resume_counters(trainer: Trainer) -> None:
    """Make the counters of a resumed run agree with its loader.

    The loader counts samples, but Lightning counts batches, whose size may have changed.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    _count_batches_like_loader(trainer)
    if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
        loop.reset_restart_stage()  # after the last batch of an epoch, Lightning would not start the next epoch


def _count_batches_like_loader(trainer: Trainer) -> None:
    loader, loop = train_loader_of(trainer), trainer.fit_loop
    progress = loop.epoch_loop.batch_progress
    if loader.batches == progress.current.ready:
        return
    if loader.batches == len(loader) and not progress.is_last_batch:  # the rest of the epoch is smaller than a batch
        loop.epoch_progress.increment_processed()
        loop.epoch_progress.increment_completed()
    shift = loader.batches - progress.current.ready
    for stage in ("ready", "started", "processed", "completed"):
        setattr(progress.current, stage, getattr(progress.current, stage) + shift)


def uncount_batch(trainer: Trainer) -> None:
    """Set the counters back to the last completed batch, to the values of a checkpoint saved right after it.

    The loader yields the uncounted batch again.
    """
    train_loader_of(trainer).return_last_batch()
    progress = trainer.fit_loop.epoch_loop.batch_progress
    progress.is_last_batch = False
    in_epoch = progress.current.completed > 0
    for count in (progress.total, progress.current):
        for stage in ("ready", "started", "processed"):
            setattr(count, stage, count.completed)
        count.completed -= in_epoch
    shift_logged_step(trainer, -in_epoch)  # Lightning adds one when it loads a checkpoint from the middle of an epoch


def repeat_evaluation(trainer: Trainer, epoch: int) -> None:
    """Make Lightning run the evaluation after the step of the checkpoint from its first batch.

    `epoch` is the epoch of the step. The counter may be larger by one if the epoch ended with the step.
    """
    loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
    loop.val_loop.restarting = False
    loop.val_loop.reset_restart_stage()
    trainer.validating = True
    completed, epochs.completed = epochs.completed, epoch
    loop.val_loop.run()
    epochs.completed = completed
    forget_evaluation(trainer)
    trainer.training = True
