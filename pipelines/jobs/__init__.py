"""Stages as Ray jobs: `compute.backend: job`, and a whole `dvc repro` as one job (`python -m pipelines submit`).

    here                                          storage                          the cluster
    submitter.py  inputs, once per content   ->   inputs/<digest>/
                  what to do                 ->   runs/<key>/work.json         ->  entry.py, the job
                  metrics                    <-   runs/<key>/metrics.jsonl     <-  site.py: checkpoints, metrics
                  outputs, verified          <-   outputs/<key>/, DONE last    <-  outputs

`<key>` is the name of the stage's scratch folder, so it holds the fingerprint: two submitters of the same work meet. The submission
id is the key and an attempt number, and is the lock: a cluster takes it once, and who submits it again follows the job that runs.
"""
