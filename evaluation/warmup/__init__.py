"""The study of warm-up: fine-tuning under token reduction, averaged models, served loads."""
