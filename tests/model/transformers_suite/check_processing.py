"""transformers' own processor tests, run on our processor."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin
from transformers import ASTFeatureExtractor, ViTImageProcessorPil

from hf_mmbalance import MMBalanceProcessor


class MMBalanceProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MMBalanceProcessor
    audio_input_name = "input_values"

    @classmethod
    def _setup_feature_extractor(cls):
        return ASTFeatureExtractor(num_mel_bins=32, max_length=128)

    @classmethod
    def _setup_image_processor(cls):
        return ViTImageProcessorPil(size={"height": 32, "width": 32})

    def get_processor(self, *args, **kwargs):
        # Most of these tests pass arrays without their rate, which our processor refuses unless it is given a default.
        processor = super().get_processor(*args, **kwargs)
        processor.audio_kwargs = {**processor.audio_kwargs, "sampling_rate": 16000}
        return processor
