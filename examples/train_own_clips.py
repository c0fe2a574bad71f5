"""Train on a folder of clips in Python, save the model with its code, and classify a clip with it.

python examples/train_own_clips.py my_clips/ --epochs 3         # my_clips/<class>/<clip>.mp4
"""

import argparse

from transformers import pipeline

from hf_mmbalance import (
    MMBalanceForAudioVisualClassification,
    MMBalanceProcessor,
    MMBalanceTrainer,
    MMBalanceTrainingArguments,
    load_clips,
)


AUDIO, VISION = "MIT/ast-finetuned-audioset-10-10-0.4593", "google/vit-base-patch16-224-in21k"


def main(folder: str, out: str, epochs: float, audio: str = AUDIO, vision: str = VISION, size: int = 224) -> str:
    """Train, print the test result and the answer for the first test clip, and return that answer."""
    clips = load_clips(folder, frames=8, frame_size=[size, size])
    print(clips.summary())  # the splits and groups, and how they were made

    model = MMBalanceForAudioVisualClassification.from_backbones(
        audio, vision, id2label=dict(enumerate(clips.classes)), fusion="adaptive", trainable_layers=2
    )
    processor = MMBalanceProcessor.from_backbones(audio, vision, reading=clips.reading)
    arguments = MMBalanceTrainingArguments(out, num_train_epochs=epochs, learning_rate=1e-4)
    trainer = MMBalanceTrainer(model, arguments, clips, processor)
    trainer.train()  # the towers on train clips; the decision layer on calibration clips
    print(trainer.evaluate(clips["test"], metric_key_prefix="test"))
    trainer.save_model(out)  # weights, code and processor

    classify = pipeline("audio-visual-classification", model=out, trust_remote_code=True)
    clip = clips["test"][0]
    answer = classify({"audio": clip["audio"], "sampling_rate": clip["sampling_rate"], "frames": clip["frames"]})[0]
    print(
        f"{clip['id']}: {answer['label']} ({answer['score']:.2f}), weights {answer['share']}, trust {answer['trust']}"
    )
    return answer["label"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", default="outputs/own-clips")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--audio", default=AUDIO)
    parser.add_argument("--vision", default=VISION)
    main(**vars(parser.parse_args()))
