"""Films of environments, as animated GIFs."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw
from tf_agents.environments import py_environment
from tf_agents.policies import tf_policy

from keras_maml.files import whole


def record(
    environment: py_environment.PyEnvironment,
    policy: tf_policy.TFPolicy,
    *,
    steps: int,
    every: int = 1,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Takes pictures of one episode of every environment.

    Args:
        environment: A batch made with ``render_mode="rgb_array"``; its tasks are set.
        policy: Acts in it.
        steps: The most steps to take.
        every: Steps from one picture to the next.
        seed: Of the reset.

    Returns:
        Pictures, uint8 ``[pictures, environments, height, width, 3]``, the last one repeated where
        an episode is over; and the returns, float64 ``[environments]``.
    """
    environment.seed(seed)
    time_step = environment.reset()
    returns = np.zeros(environment.batch_size)
    running = np.ones(environment.batch_size, bool)
    pictures = [environment.render()]
    for step in range(1, steps + 1):
        time_step = environment.step(
            tf.nest.map_structure(np.asarray, policy.action(time_step).action)
        )
        returns += np.where(running, time_step.reward, 0.0)
        if step % every == 0:
            shown = running[:, None, None, None]
            pictures.append(np.where(shown, environment.render(), pictures[-1]))
        running &= ~time_step.is_last()
        if not running.any():
            break
    return np.stack(pictures), returns


def write_gif(
    path: str | os.PathLike,
    pictures: np.ndarray,
    captions: Sequence[str],
    *,
    frames_per_second: float = 25.0,
    height: int = 240,
) -> None:
    """Writes pictures of several environments side by side, whole or not at all.

    Args:
        path: The file.
        pictures: uint8 ``[pictures, environments, height, width, 3]``.
        captions: One per environment.
        frames_per_second: How fast the film runs.
        height: Of the film, in pixels.
    """
    frames = []
    for picture in pictures:
        panels = []
        for panel, caption in zip(picture, captions, strict=True):
            image = Image.fromarray(panel)
            image = image.resize((round(height * image.width / image.height), height))
            box = (0, height - 16, image.width, height)
            draw = ImageDraw.Draw(image)
            draw.rectangle(box, fill="white")
            draw.text((6, height - 14), caption, fill="black")
            panels.append(np.asarray(image))
        frames.append(Image.fromarray(np.concatenate(panels, axis=1)).quantize(64))
    duration = round(1000 / frames_per_second)
    with whole(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=duration,
            loop=0,
        )
