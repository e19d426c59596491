"""Commands of `minipar` that look at programs and graphs; each module's main(argv) returns the
exit status."""
