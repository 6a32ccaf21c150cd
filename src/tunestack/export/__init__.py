"""Export: a trained candidate as a folder to use elsewhere, with a model card, and on the Hub."""
