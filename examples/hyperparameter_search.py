"""Search for a learning rate and a dropout rate with Optuna, on synthetic clips with tiny towers.

pip install optuna
python examples/hyperparameter_search.py --trials 8
"""

import argparse

from transformers import AutoConfig

from hf_mmbalance import (
    MMBalanceForAudioVisualClassification,
    MMBalanceProcessor,
    MMBalanceTrainer,
    MMBalanceTrainingArguments,
    load_clips,
)


SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
AUDIO = AutoConfig.for_model("audio-spectrogram-transformer", **SIZES, num_mel_bins=32, max_length=48, patch_size=8,
                             frequency_stride=8, time_stride=8)  # fmt: skip
VISION = AutoConfig.for_model("vit", **SIZES, image_size=32, patch_size=8)


def main(trials: int = 8, epochs: int = 4, folder: str = "outputs/search", **sizes: int) -> dict[str, float]:
    """Run the search on synthetic clips (`sizes`: train_clips and so on) and return the best values."""
    clips = load_clips("synthetic", **sizes)

    def new_model(trial):  # a new model for every trial; you can also search its settings here
        dropout = 0.0 if trial is None else trial.suggest_float("classifier_dropout", 0.0, 0.5)
        return MMBalanceForAudioVisualClassification.from_backbones(
            AUDIO, VISION, id2label=dict(enumerate(clips.classes)), classifier_dropout=dropout
        )

    arguments = MMBalanceTrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        save_strategy="no",
        load_best_model_at_end=False,
    )
    processor = MMBalanceProcessor.from_backbones(AUDIO, VISION, reading={"frames": 4})
    trainer = MMBalanceTrainer(None, arguments, clips, processor, model_init=new_model)
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        compute_objective=lambda metrics: metrics["eval_nll"],  # of the fused decision, on validation clips
        direction="minimize",
        n_trials=trials,
        backend="optuna",
    )
    print(f"best validation NLL {best.objective:.3f} with {best.hyperparameters}")
    return best.hyperparameters


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    main(parser.parse_args().trials)
