"""Matched unlearning: the strength each sample needs so that the forget set's margins look like unseen data's."""
