"""Stages as Ray jobs (`compute.backend: job`), and a whole pipeline as a job (`python -m pipelines submit`).

    here                                          storage                          the cluster
    submitter.py  inputs, once per content   ->   inputs/<digest>/
                  the task                   ->   runs/<key>/work.json         ->  stage_job.py
                  metrics.py    metrics      <-   runs/<key>/                  <-  folders.py: checkpoints, metrics
                  outputs, verified          <-   outputs/<key>/, DONE last    <-  outputs

`<key>` is the name of the stage's scratch folder and contains the fingerprint, so two submitters of the same stage use one key. The
submission id is the key and an attempt number, and is the lock: a cluster accepts it once, and a second submitter follows the job.
Nothing here knows what a stage computes.
"""
