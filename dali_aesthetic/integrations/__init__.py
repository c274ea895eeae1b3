"""The same scores in NeMo Curator, Ray Data and Hugging Face datasets."""
