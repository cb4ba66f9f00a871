"""What one update of each network would be made of."""

from typing import Any

from torch import Tensor, nn

from ivideogpt.training.tokenizer.trainer import TokenizerTrainer
from ivideogpt.training.transformer.trainer import GptTrainer


def gradients_of(trainer: TokenizerTrainer | GptTrainer) -> dict[str, Tensor]:
    """Gradients by name, as the optimizers find them: after exchange and clipping. No weight changes."""
    found: dict[str, Tensor] = {}
    catch(found, trainer.optimizer, trainer.accelerator.unwrap_model(trainer.model))
    if isinstance(trainer, GptTrainer):
        trainer.update()
        return found
    trainer.generator_phase()
    if trainer.gan_loss is not None:
        catch(found, trainer.gan_loss.optimizer, trainer.accelerator.unwrap_model(trainer.gan_loss.discriminator))
        trainer.progress.step += 1
        trainer.discriminator_phase()
    return found


def catch(found: dict[str, Tensor], optimizer: Any, model: nn.Module) -> None:
    def step() -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"{type(model).__name__}.{name}"] = parameter.grad.clone()

    optimizer.step = step
