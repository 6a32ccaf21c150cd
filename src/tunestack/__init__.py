"""tunestack: which model and which fine-tuning method should I ship?"""
