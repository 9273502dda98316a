"""Where optimiser steps are taken."""
