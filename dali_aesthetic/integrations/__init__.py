"""The same scores inside what people already run: NeMo Curator, Ray Data, Hugging Face datasets."""
