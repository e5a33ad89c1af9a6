"""Unsupervised 3D generative models for Down syndrome brain MRI: the walk, verb by verb.

  python -m dsnb VERB [WORD ...] [--preset smoke|small|medium|full] [--SETTING VALUE ...]

  study             run the ten stages that changed, build the book
  verify [ROOT]     check that the book is whole; or that a study's numbers are the book's

  phantom           draw the digital cohort
  import            take in the phantom, or a cohort by --raw BIDS
  import IN OUT     make BIDS of a folder as received: --from abcds|oasis1|ixi
  prepare           bring all scans to the study grid; --check reports every problem and stops
  train MODEL       vae, undo or diffusion; the same again goes on after an interruption
  encode            volumes to latents
  map [sub-ID ...]  anomaly maps of everybody; with ids, reports from finished maps
  map export FILE   write this study's norm to a file; map --norm NAME uses one on new scans
  sample [OUT]      the study's synthetic people; with a folder, as many as --n, --group, --age ask
  release OUT       write the synthetic cohort to a new folder, if its audit passed
  health RUN        what is wrong with a training (vae, undo, diffusion) or samples (synthetic)
  search, bench     the study's search and scaling; with a word, a part of `make ablations`

  --data-root DIR   all products of one study; else $DSNB_DATA, else data/
  --raw DIR         a BIDS folder of T1w scans; without it the digital phantom
  --dry-run         print every setting and stop: dsnb train vae --vae.width 48 --dry-run

Every flag and setting: python -m dsnb VERB --help. Guides: book/guides/.
Exit codes: 0 done, 2 refused or unhealthy, 3 not released, 75 stopped and saved: run it again.
"""

__version__ = "0.1.0"
