"""The commands of chatglm-hactl, one file each; a file is imported only when its command is used."""
