"""Alignment: human judgements, reward models, and policies trained on what people prefer."""
