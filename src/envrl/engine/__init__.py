"""Engines, which take the optimiser steps."""
